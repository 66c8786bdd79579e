"""The settings of the object store: the variable of a field is its name after `SMALTI_STORE_`."""

from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from smalti.errors import InvalidInputError
from smalti.settings import PREFIX, EnvironmentSettings, data_folder, read_settings
from smalti.storage.local import LocalStore
from smalti.storage.memory import MemoryStore
from smalti.storage.store import ObjectStore

STORE_PREFIX = f"{PREFIX}STORE_"

FORMS = "s3+http://KEY:SECRET@HOST:PORT/BUCKET, s3+https://KEY:SECRET@HOST/BUCKET, file:///FOLDER, or memory:"


def _default_url() -> SecretStr:
    return SecretStr((data_folder() / "store").as_uri())


class StoreSettings(EnvironmentSettings):
    """The settings; see `EnvironmentSettings`."""

    model_config = SettingsConfigDict(env_prefix=STORE_PREFIX)

    url: SecretStr = Field(default_factory=_default_url)
    """Where objects are: `s3+http://KEY:SECRET@HOST:PORT/BUCKET` or `s3+https://…` for any S3 store, with `?region=`
    where it is not `us-east-1`, or `file:///FOLDER`, which all services must share. The bucket is made if it is not
    there."""
    access_key: SecretStr | None = None
    """The access key, in place of the one in the address."""
    secret_key: SecretStr | None = None
    """The secret key, in place of the one in the address."""
    public_url: str | None = None
    """`http://HOST:PORT` or `https://HOST` by which clients reach the S3 store, where that is another address than the
    services'; the addresses that pictures are given by begin with it."""
    ca: Path | None = None
    """The authorities, as a PEM file, one of which must have signed the store's certificate; unset, the system's."""
    timeout: Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)] = 10.0
    """The seconds for connecting to the store, and for each part of its answer."""
    tries: Annotated[int, Field(ge=1, le=10)] = 3
    """How often a call to the store that fails for a passing reason is made."""
    expiry_days: Annotated[int, Field(ge=0, le=3650)] = 7
    """The days after which the objects of a job are removed, its pictures with them; 0 keeps them."""


def store_settings() -> StoreSettings:
    """Reads the settings from the environment as it is now.

    Raises:
        InvalidInputError: names the variable whose value cannot be used.
    """
    return read_settings(StoreSettings)


def open_store(settings: StoreSettings | None = None) -> ObjectStore:
    """Makes the store that the settings name; it is not looked for before its first use, or `check`.

    Args:
        settings: None reads them from the environment.

    Raises:
        InvalidInputError: the address cannot be used; names the variable, and shows no secret.
    """
    settings = settings or store_settings()
    parts = urlsplit(settings.url.get_secret_value())
    if parts.scheme == "file":
        if parts.netloc or not parts.path.startswith("/") or parts.path == "/":
            raise InvalidInputError(f"{STORE_PREFIX}URL", "a folder is given as file:///FOLDER")
        return LocalStore(Path(unquote(parts.path)))
    if parts.scheme == "memory":
        return MemoryStore()
    if parts.scheme in ("s3+http", "s3+https"):
        return _open_s3(settings)
    raise InvalidInputError(f"{STORE_PREFIX}URL", f"the address of a store has one of the forms {FORMS}")


def _open_s3(settings: StoreSettings) -> ObjectStore:
    from smalti.storage.s3 import S3Address, S3Store  # Only who uses S3 needs its client.

    parts = urlsplit(settings.url.get_secret_value())
    bucket = parts.path.strip("/")
    try:
        host = parts.netloc.rpartition("@")[2]
        if not parts.hostname or parts.port == 0 or len(bucket) < 3 or "/" in bucket:
            raise ValueError
    except ValueError:
        raise InvalidInputError(
            f"{STORE_PREFIX}URL",
            f"the address of a store has one of the forms {FORMS}; a bucket has three letters",
        ) from None
    access = settings.access_key.get_secret_value() if settings.access_key else unquote(parts.username or "")
    secret = settings.secret_key.get_secret_value() if settings.secret_key else unquote(parts.password or "")
    if not access or not secret:
        raise InvalidInputError(
            f"{STORE_PREFIX}URL", "neither it nor the settings of the keys have both keys"
        )
    if settings.public_url and urlsplit(settings.public_url).scheme not in ("http", "https"):
        raise InvalidInputError(f"{STORE_PREFIX}PUBLIC_URL", "it does not begin with http:// or https://")
    region = parse_qs(parts.query).get("region", ["us-east-1"])[0]
    address = S3Address(
        endpoint=f"{parts.scheme.removeprefix('s3+')}://{host}",
        bucket=bucket,
        access_key=access,
        secret_key=secret,
        region=region,
        public_endpoint=settings.public_url,
    )
    return S3Store(
        address,
        timeout=settings.timeout,
        tries=settings.tries,
        ca=str(settings.ca) if settings.ca else None,
    )
