"""Addresses of objects as other programs write them: `s3://BUCKET/PREFIX`."""

import os
import re
from typing import Final
from urllib.parse import quote, urlencode, urlsplit

from pydantic import SecretStr

from smalti.errors import InvalidInputError
from smalti.storage.keys import check_key
from smalti.storage.settings import STORE_PREFIX, StoreSettings, open_store, store_settings
from smalti.storage.store import ObjectStore

S3_SCHEME: Final = "s3://"
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def open_address(address: str, field: str) -> tuple[ObjectStore, str]:
    """Returns the store and the key, or the prefix, of an address, without connecting.

    The host and the keys are those of `SMALTI_STORE_URL`, if that is an S3 store; otherwise those of `AWS_*` variables.

    Args:
        address: begins with `S3_SCHEME`.
        field: the argument that names the address, for errors.

    Raises:
        InvalidInputError: the address or a setting is invalid, or no keys are set.
    """
    bucket, _, path = address.removeprefix(S3_SCHEME).partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise InvalidInputError(field, f"{address!r:.120} must have the form s3://BUCKET/PREFIX")
    if key := path.strip("/"):
        try:
            check_key(key)
        except InvalidInputError as error:
            raise InvalidInputError(field, error.problem) from None
    settings = store_settings()
    parts = urlsplit(settings.url.get_secret_value())
    if parts.scheme.startswith("s3+"):
        url = parts._replace(path=f"/{bucket}").geturl()
    else:
        settings, url = _aws(settings, bucket, field)
    return open_store(settings.model_copy(update={"url": SecretStr(url)})), key


def _aws(settings: StoreSettings, bucket: str, field: str) -> tuple[StoreSettings, str]:
    """Returns the settings with the keys of the `AWS_*` variables, and the URL that they name."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    keys = {
        "access_key": "AWS_ACCESS_KEY_ID",
        "secret_key": "AWS_SECRET_ACCESS_KEY",
        "session_token": "AWS_SESSION_TOKEN",
    }
    given = {name: SecretStr(value) for name, variable in keys.items() if (value := os.environ.get(variable))}
    if settings.access_key is None or settings.secret_key is None:
        if not {"access_key", "secret_key"} <= given.keys():
            raise InvalidInputError(
                field,
                "needs the keys of the store; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                f"{STORE_PREFIX}URL",
            )
        settings = settings.model_copy(update=given)
    if endpoint is None:
        return settings, f"s3+https://s3.{region}.amazonaws.com/{bucket}"
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInputError(
            "AWS_ENDPOINT_URL", f"must begin with http:// or https://, got {endpoint!r:.80}"
        )
    return settings, f"s3+{parts.scheme}://{parts.netloc}/{quote(bucket)}?{urlencode({'region': region})}"
