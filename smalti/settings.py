"""Settings from the environment: `SMALTI_` and the name of a field of `Settings` is its variable."""

import ipaddress
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from smalti.errors import InvalidInputError
from smalti.validation import first_problem

PREFIX = "SMALTI_"
SECRETS = f"{PREFIX}SECRETS"
"""The variable that names a folder of files, each with the value of a setting."""

Seconds = Annotated[float, Field(gt=0, le=7 * 24 * 3600, allow_inf_nan=False)]
"""A time in seconds, above zero and at most a week."""
SecondsOrNone = Annotated[float, Field(ge=0, le=7 * 24 * 3600, allow_inf_nan=False)]
"""A time in seconds, at most a week; 0 for no time."""


def _plain_host(host: str) -> str:
    """Returns a host without the brackets that an IPv6 address has in URLs; raises `ValueError` for anything else."""
    plain = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if ":" in plain or plain != host:
        try:
            ipaddress.IPv6Address(plain)
        except ValueError:
            raise ValueError(
                f"{host!r} must be a name or an address such as 127.0.0.1 or ::1, without a port"
            ) from None
    return plain


Host = Annotated[str, Field(min_length=1), AfterValidator(_plain_host)]
"""A name or an address to listen on; an IPv6 address may have brackets, and is kept without."""

SettingsKind = TypeVar("SettingsKind", bound=BaseSettings)


def _base_folder(variable: str, default: str) -> Path | None:
    """Returns a folder by the XDG base directory specification, by which relative paths are ignored.

    None for a user without a home, such as a container's bare user id.
    """
    folder = Path(os.environ.get(variable, ""))
    if folder.is_absolute():
        return folder / "smalti"
    home = home_folder()
    return None if home is None else home / default / "smalti"


def home_folder() -> Path | None:
    """Returns the home of the user; None for a user who has none."""
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home if home.is_absolute() else None


def listed(text: str) -> list[str]:
    """Returns the parts of a list that is separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def check_networks(text: str) -> str:
    """Returns a list of addresses and networks; raises `ValueError` if one is invalid."""
    for each in listed(text):
        try:
            ipaddress.ip_network(each)
        except ValueError:
            raise ValueError(f"{each!r} must be an address such as 10.0.0.1 or a network") from None
    return text


def data_folder(variable: str) -> Path:
    """Returns the folder for the data of the user.

    Args:
        variable: the setting, or the option, whose default lies in this folder, for the error.

    Raises:
        InvalidInputError: this user has no home.
    """
    folder = _base_folder("XDG_DATA_HOME", ".local/share")
    if folder is None:
        raise InvalidInputError(
            variable, "is not set, and this user has no home for its default; set it, XDG_DATA_HOME or HOME"
        )
    return folder


def _models_folder() -> Path | None:
    folder = _base_folder("XDG_DATA_HOME", ".local/share")
    return None if folder is None else folder / "models"


def _compilation_cache_folder() -> Path | None:
    folder = _base_folder("XDG_CACHE_HOME", ".cache")
    return None if folder is None else folder / "compiled"


class Auth(StrEnum):
    """How callers of the gateway and of the web service say who they are."""

    NONE = "none"
    """They do not: everyone who reaches the port may do everything."""
    KEYS = "keys"
    """With a key that `smalti keys create` has made."""
    MTLS = "mtls"
    """With a client certificate."""
    JWT = "jwt"
    """With a token of an identity provider."""


class EnvironmentSettings(BaseSettings):
    """The base of all settings: an empty variable counts as unset, and docstrings describe the fields.

    What no variable sets may be a file in the folder `SMALTI_SECRETS`, with the variable's name.
    """

    model_config = SettingsConfigDict(
        env_ignore_empty=True, extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    @classmethod
    def settings_customise_sources(  # noqa: D102
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        folder = os.environ.get(SECRETS)
        files = (SecretsSettingsSource(settings_cls, secrets_dir=folder),) if folder else ()
        return (init_settings, env_settings, *files)


class Settings(EnvironmentSettings):
    """The settings of commands and libraries; each service has its own beside them."""

    # An empty SMALTI_COMPILATION_CACHE has a meaning.
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=False)

    models: Path | None = Field(default_factory=_models_folder)
    """Folder of your models, in which they are found by name and into which they are imported; none for a user without
    a home."""
    model: str | None = None
    """Default model, a name or a folder; unset for the model that comes with Smalti."""
    server: str | None = None
    """Address of the gateway, HOST:PORT, for the clients, `smalti generate` and the web service."""
    offline: bool = False
    """Use only what the hub cache holds, without the network."""
    hub_cache: Path | None = None
    """Folder for downloads from the hub; unset for the default of the hub library."""
    hub_endpoint: str | None = None
    """Address of a mirror of the Hugging Face hub; unset for the hub itself."""
    compilation_cache: Path | None = Field(default_factory=_compilation_cache_folder)
    """Folder for compiled programs, which make the next start quick; an empty value turns the cache off. Reading a
    program is running code, so the folder is used only if it belongs to the user who runs Smalti and nobody else can
    write to it."""
    compilation_cache_volume: bool = False
    """Nobody but this program reaches the folders above that one, whatever their permissions say, as in a volume of a
    container; only the folder itself must belong to the user alone."""
    compilation_cache_bytes: int = Field(default=2**30, gt=0)
    """Size of that folder in bytes, beyond which the programs that were used longest ago are removed."""
    compiled: Path | None = None
    """Folder of programs that `smalti compile` has made for this kind of machine; looked up before any other. Unless
    `SMALTI_COMPILED_SHA256` is set, it must belong to the user alone, since reading a program is running code."""
    compiled_sha256: str = ""
    """SHA-256 that `smalti compile` printed: makes that folder trusted, whoever can write to it."""
    generator_mesh: str = "1x1"
    """Devices for the generator, as two numbers: how many share the slots, and how many share each layer, for a model
    that does not fit on one device."""
    generator_int8: str = ""
    """What the generator keeps as int8, `cache` (keys and values), `weights`, or both with a comma; other tokens than
    without, in about half of the memory. For GPUs and TPUs: on a CPU it is slower."""
    secrets: Path | None = None
    """Folder of files with the values of settings, such as a mounted secret: a file has the name of a variable, and a
    variable that is set goes before."""
    key: SecretStr | None = None
    """Key with which the clients and `smalti generate` call the gateway, `sk-smalti-...`, or a token. Services ignore
    it."""
    auth: str = ""
    """How callers of the gateway and the web service say who they are: `keys`, `mtls`, `jwt`, several of these with
    commas between them, or `none`. Unset, it is `mtls` for a gateway with `SMALTI_RPC_TLS_CLIENT_CA`, and `none` for
    one that only this machine reaches; any other fails to start."""
    plaintext: bool = False
    """Allow plaintext to and from other machines, for every protocol: gRPC, the broker, the store, the database, traces
    and the web service. Without it and without TLS, a program fails to start."""

    @field_validator("auth")
    @classmethod
    def _check_auth(cls, text: str) -> str:
        ways = listed(text)
        for each in ways:
            if each not in list(Auth):
                raise ValueError(f"{each!r} must be one of {', '.join(Auth)}")
        if Auth.NONE in ways and len(set(ways)) > 1:
            raise ValueError("none cannot be combined with others; leave it out")
        return text

    @property
    def auth_ways(self) -> frozenset[Auth]:
        """How callers say who they are; empty if that is not set."""
        return frozenset(map(Auth, listed(self.auth)))

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_values(cls, values: dict[str, Any]) -> dict[str, Any]:
        """An empty variable counts as unset, except that it turns the compilation cache off."""
        kept = {name: value for name, value in values.items() if value != ""}
        return {**kept, "compilation_cache": None} if values.get("compilation_cache") == "" else kept


def settings() -> Settings:
    """Reads the settings from the environment as it is now.

    Raises:
        InvalidInputError: a value is invalid; names its variable.
    """
    return read_settings(Settings)


def is_set(variable: str) -> bool:
    """Tells whether a setting has a value, from the environment or from a file of `SMALTI_SECRETS`."""
    if os.environ.get(variable):
        return True
    folder = os.environ.get(SECRETS, "")
    return bool(folder) and Path(folder, variable).is_file()


def read_settings(kind: type[SettingsKind]) -> SettingsKind:
    """Reads settings of one kind from the environment as it is now.

    Raises:
        InvalidInputError: a value is invalid; names its variable.
    """
    folder = os.environ.get(SECRETS)
    if folder and not os.access(folder, os.R_OK | os.X_OK):
        raise InvalidInputError(SECRETS, f"{folder} is not a folder that can be read")
    try:
        return kind()
    except ValidationError as error:
        problem = first_problem(error)
        # A contradiction between settings has no single field; its message names them.
        variable = f"{kind.model_config['env_prefix']}{problem.field.partition('.')[0].upper() or '*'}"
        raise InvalidInputError(variable, problem.message) from None
