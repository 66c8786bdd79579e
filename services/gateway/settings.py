"""The settings of the gateway: the variable of a field is its name after `SMALTI_GATEWAY_`."""

from typing import Annotated, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from smalti.messages import MAX_IN_CHUNK
from smalti.settings import PREFIX, EnvironmentSettings, Seconds, data_folder, read_settings

GATEWAY_PREFIX = f"{PREFIX}GATEWAY_"


def _default_database() -> SecretStr:
    return SecretStr(f"sqlite:///{data_folder() / 'gateway.sqlite3'}")


class GatewaySettings(EnvironmentSettings):
    """The settings; see `EnvironmentSettings`."""

    model_config = SettingsConfigDict(env_prefix=GATEWAY_PREFIX)

    database: SecretStr = Field(default_factory=_default_database)
    """Where jobs are: `sqlite:////FOLDER/FILE`, for one gateway, or `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`,
    which several may share. The tables are made, and brought up to date, at the start."""
    database_timeout: Seconds = 5.0
    """The seconds for which a call waits for the database before it is answered with UNAVAILABLE."""
    decoder: str | None = None
    """`HOST:PORT` of a decoder, for previews and for initial pictures given as files. Unset, there are neither."""
    chunk: Annotated[int, Field(ge=1, le=MAX_IN_CHUNK)] = 4
    """How many candidates of a job travel together."""
    window: Annotated[int, Field(ge=1, le=2**20)] = 128
    """How many candidates may be on their way through the queues at a time; the rest waits in the database, where order
    and priority are kept. Twice the slots of all generators together, or more."""
    open_jobs: Annotated[int, Field(ge=1, le=10**6)] = 10_000
    """How many jobs may be open at a time; past it requests are refused with RESOURCE_EXHAUSTED."""
    candidates: Annotated[int, Field(ge=1, le=1024)] = 256
    """The most candidates of a job."""
    idle_candidates: Annotated[int, Field(ge=0, le=1024)] = 32
    """How many candidates are drawn of a job that does not say, while no other job is open; never less than the model's
    own number."""
    time_limit: Seconds = 24 * 3600.0
    """The most seconds that a job may be given until it expires."""
    default_time_limit: Seconds = 3600.0
    """The seconds after which a job expires that does not say."""
    retention: Seconds = 7 * 24 * 3600.0
    """The most seconds for which a job and its pictures are kept after its end. Objects are kept for
    `SMALTI_STORE_EXPIRY_DAYS` in any case no longer."""
    default_retention: Seconds = 24 * 3600.0
    """The seconds for which a job is kept that does not say."""
    image_bytes: Annotated[int, Field(ge=1024, le=2**30)] = 8 * 2**20
    """The largest file of an initial picture, in bytes; smaller than `SMALTI_RPC_RECEIVE_BYTES`."""
    labels: Annotated[int, Field(ge=0, le=1000)] = 16
    """The most labels of a job."""
    lease: Seconds = 120.0
    """The seconds without a word of a chunk after which it is sent again; twice as long after every time."""
    attempts: Annotated[int, Field(ge=1, le=100)] = 6
    """How often a chunk is begun in vain before its job fails."""
    retry: Seconds = 5.0
    """The seconds before a chunk is sent again that its stage has given up; twice as long after every time."""
    sweep: Seconds = 0.5
    """The seconds between two looks for what has lost its lease, has expired, or is to be deleted."""
    watch: Seconds = 1.0
    """The seconds between two looks for changes that another gateway has made of jobs that are watched."""
    previews: Seconds = 1.0
    """The least seconds between two previews of a job."""
    url_lifetime: Seconds = 3600.0
    """The seconds for which the address of a picture works."""
    concurrency: Annotated[int, Field(ge=1, le=64)] = 8
    """How many events are handled at the same time."""

    @model_validator(mode="after")
    def _fit(self) -> Self:
        for default, most in (("default_time_limit", "time_limit"), ("default_retention", "retention")):
            if getattr(self, default) > getattr(self, most):
                names = [f"{GATEWAY_PREFIX}{name}".upper() for name in (default, most)]
                raise ValueError(f"{names[0]} is more than {names[1]}")
        return self


def gateway_settings() -> GatewaySettings:
    """Reads the settings from the environment as it is now.

    Raises:
        InvalidInputError: names the variable whose value cannot be used.
    """
    return read_settings(GatewaySettings)
