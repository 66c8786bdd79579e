"""The settings of the object store. A field's variable is its name after `SMALTI_STORE_`."""

import re
import ssl
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from smalti.errors import InvalidInputError
from smalti.network import check_plaintext
from smalti.settings import PREFIX, EnvironmentSettings, data_folder, read_settings
from smalti.storage.local import LocalStore
from smalti.storage.memory import MemoryStore
from smalti.storage.store import ObjectStore

STORE_PREFIX = f"{PREFIX}STORE_"

# s3.eu-west-1.amazonaws.com, s3-us-west-2.amazonaws.com, s3.dualstack.eu-west-1.amazonaws.com, and others' alike.
_REGION = re.compile(
    r"(?:^|\.)s3(?:-fips)?[.-](?:dualstack\.)?([a-z]+(?:-[a-z]+)+-?\d+|[a-z]+-[a-z]+(?=\.scw\.cloud$))\."
)

FORMS = "s3+http://KEY:SECRET@HOST:PORT/BUCKET, s3+https://KEY:SECRET@HOST/BUCKET, file:///FOLDER, or memory:"


def _default_url() -> SecretStr:
    return SecretStr((data_folder(f"{STORE_PREFIX}URL") / "store").as_uri())


class StoreSettings(EnvironmentSettings):
    """The settings of the object store."""

    model_config = SettingsConfigDict(env_prefix=STORE_PREFIX)

    url: SecretStr = Field(default_factory=_default_url)
    """URL of the object store: `s3+http://KEY:SECRET@HOST:PORT/BUCKET` or `s3+https://…` for S3, with `?region=` if
    its host does not name the region, or
    `file:///FOLDER`, which all services must share. A missing bucket is created."""
    access_key: SecretStr | None = None
    """Access key; overrides the one in the URL."""
    secret_key: SecretStr | None = None
    """Secret key; overrides the one in the URL."""
    session_token: SecretStr | None = None
    """Session token of keys that are valid for a time."""
    public_url: str | None = None
    """`http://HOST:PORT` or `https://HOST` at which clients reach the S3 store, if it differs from the services'
    address. URLs of pictures begin with it."""
    ca: Path | None = None
    """PEM file of the authorities that may sign the store's certificate. Unset: those of the system."""
    timeout: Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)] = 10.0
    """Seconds for connecting to the store, and for each read of its response."""
    tries: Annotated[int, Field(ge=1, le=10)] = 3
    """Attempts at a call of the store that fails for a transient reason."""
    expiry_days: Annotated[int, Field(ge=0, le=3650)] = 7
    """Days after which the objects of a job, including its pictures, are deleted; 0 keeps them."""


def store_settings() -> StoreSettings:
    """Reads the settings from the environment.

    Raises:
        InvalidInputError: a value is invalid; names the variable.
    """
    return read_settings(StoreSettings)


def open_store(settings: StoreSettings | None = None) -> ObjectStore:
    """Returns the store that the settings name, without connecting to it; see `ObjectStore.check`.

    Args:
        settings: None reads them from the environment.

    Raises:
        InvalidInputError: a setting is invalid; names the variable, and shows no secret.
    """
    settings = settings or store_settings()
    parts = urlsplit(settings.url.get_secret_value())
    if parts.scheme == "file":
        if parts.netloc or not parts.path.startswith("/") or parts.path == "/":
            raise InvalidInputError(f"{STORE_PREFIX}URL", "must have the form file:///FOLDER for a folder")
        return LocalStore(Path(unquote(parts.path)))
    if parts.scheme == "memory":
        return MemoryStore()
    if parts.scheme in ("s3+http", "s3+https"):
        return _open_s3(settings)
    raise InvalidInputError(f"{STORE_PREFIX}URL", f"must have one of the forms {FORMS}")


def _open_s3(settings: StoreSettings) -> ObjectStore:
    from smalti.storage.s3 import S3Address, S3Store  # Needs the S3 client, which other stores do not.

    parts = urlsplit(settings.url.get_secret_value())
    bucket = parts.path.strip("/")
    try:
        host = parts.netloc.rpartition("@")[2]
        if not parts.hostname or parts.port == 0 or len(bucket) < 3 or "/" in bucket:
            raise ValueError
    except ValueError:
        raise InvalidInputError(
            f"{STORE_PREFIX}URL",
            f"must have one of the forms {FORMS}, with a bucket name of at least three characters",
        ) from None
    access = settings.access_key.get_secret_value() if settings.access_key else unquote(parts.username or "")
    secret = settings.secret_key.get_secret_value() if settings.secret_key else unquote(parts.password or "")
    if not access or not secret:
        raise InvalidInputError(
            f"{STORE_PREFIX}URL",
            f"lacks a key; put both keys into it, or set {STORE_PREFIX}ACCESS_KEY and {STORE_PREFIX}SECRET_KEY",
        )
    if parts.scheme == "s3+http":
        check_plaintext(parts.hostname, f"{STORE_PREFIX}URL", "is not s3+https://")
    if settings.public_url:
        _check_public(settings.public_url)
    if settings.ca is not None:
        _check_ca(settings.ca)
    region = _region(parts.hostname, parts.query)
    address = S3Address(
        endpoint=f"{parts.scheme.removeprefix('s3+')}://{host}",
        bucket=bucket,
        access_key=access,
        secret_key=secret,
        session_token=settings.session_token.get_secret_value() if settings.session_token else None,
        region=region,
        public_endpoint=settings.public_url,
    )
    return S3Store(
        address,
        timeout=settings.timeout,
        tries=settings.tries,
        ca=str(settings.ca) if settings.ca else None,
    )


def _region(host: str, query: str) -> str:
    """Returns the region of an address: the one in the host of AWS and of others with such hosts, or of the query.

    Raises:
        InvalidInputError: the two differ, or the query has something else.
    """
    given = parse_qs(query, keep_blank_values=True)
    if unknown := given.keys() - {"region"}:
        raise InvalidInputError(f"{STORE_PREFIX}URL", f"can have ?region= only, not {sorted(unknown)[0]}")
    asked = given.get("region", [""])[-1]
    found = _REGION.search(host)
    if found is None:
        return asked or "us-east-1"
    if asked and asked != found[1]:
        raise InvalidInputError(
            f"{STORE_PREFIX}URL", f"names two regions, {found[1]} in its host and {asked}; leave ?region= out"
        )
    return found[1]


def _check_public(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise InvalidInputError(f"{STORE_PREFIX}PUBLIC_URL", "must begin with http:// or https://")
    if parts.scheme == "http":
        check_plaintext(parts.hostname or "", f"{STORE_PREFIX}PUBLIC_URL", "is not https://")


def _check_ca(path: Path) -> None:
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:
        raise InvalidInputError(
            f"{STORE_PREFIX}CA", f"{path} cannot be used: {error.strerror or error}"
        ) from None
