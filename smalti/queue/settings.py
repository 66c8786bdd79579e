"""The settings of the broker and its messages. A field's variable is its name after `SMALTI_BROKER_`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from smalti.settings import PREFIX, EnvironmentSettings, Seconds, data_folder, read_settings

BROKER_PREFIX = f"{PREFIX}BROKER_"

Work = Literal["all", "interactive", "batch"]


class BrokerSettings(EnvironmentSettings):
    """The settings of the broker and its messages."""

    model_config = SettingsConfigDict(env_prefix=BROKER_PREFIX)

    url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    """URL of the broker: `redis://` or `rediss://` for Valkey and Redis, `amqp://` or `amqps://` for RabbitMQ, with
    user, password, host, port, and the database or virtual host. `rediss://` and `amqps://` use TLS."""
    ca: Path | None = None
    """PEM file of the authorities that may sign the broker's certificate. Unset: those of the system."""
    certificate: Path | None = None
    """PEM file of the certificate that is shown to the broker (mTLS)."""
    key: Path | None = None
    """PEM file of the private key of that certificate."""
    timeout: Seconds = 5.0
    """Seconds within which the broker must confirm a message before the sender gets `BrokerUnavailableError`."""
    visibility_timeout: Seconds = 600.0
    """Valkey and Redis: seconds after which an unacknowledged message is delivered to another worker. Must be longer
    than any stage takes, and the same for all services."""
    heartbeat: Annotated[int, Field(ge=2, le=600)] = 10
    """RabbitMQ: seconds between heartbeats; after two missed ones the worker reconnects."""
    attempts: Annotated[int, Field(ge=1, le=100)] = 5
    """Attempts at a message before it goes to the dead-letter queue."""
    deliveries: Annotated[int, Field(ge=3, le=15)] = 3
    """Crashes of workers over a message, all but the first while it runs alone, before it goes to the dead-letter
    queue. At least three: fewer do not prove that the message is the cause."""
    journal: Path = Field(default_factory=lambda: data_folder(f"{BROKER_PREFIX}JOURNAL") / "workers")
    """Folder in which the workers of a machine note what they are working on, so that it is known what they crash over.
    It must be local, and the same after a restart."""
    retry_first: Seconds = 0.5
    """Seconds before the first retry after a transient failure; doubled for each further attempt."""
    retry_max: Seconds = 30.0
    """Maximum seconds between two attempts."""
    old_queues: bool = True
    """Whether a stage takes work from the queues without a key too, as services of 0.2.0 and messages of version 2 use
    them; 0 needs `SMALTI_MESSAGES_WRITE=3`."""
    work: Work = "all"
    """Which work a stage takes: `all`, or only that of `interactive` jobs, or only that of `batch` jobs and of batches.
    Other workers must take the rest."""
    drain: Seconds = 25.0
    """Seconds that a stopping worker gives to the messages it has begun; the rest goes back to the queue."""
    signing_key: Path | None = None
    """PEM file of the private key with which messages are signed. With the next two settings, services refuse messages
    that are not signed by a trusted certificate."""
    signing_certificate: Path | None = None
    """PEM file of the certificate of the signing key."""
    signing_trusted: Path | None = None
    """Folder of the certificates (`*.pem`) whose signatures are accepted. The name of each file says whose it is."""

    @model_validator(mode="after")
    def _signing_is_whole(self) -> Self:
        parts = {
            "signing_key": self.signing_key,
            "signing_certificate": self.signing_certificate,
            "signing_trusted": self.signing_trusted,
        }
        missing = [name for name, value in parts.items() if value is None]
        if missing and len(missing) < len(parts):
            names = ", ".join(f"{BROKER_PREFIX}{name}".upper() for name in missing)
            raise ValueError(f"set all three signing settings or none of them; missing: {names}")
        return self

    @property
    def signed(self) -> bool:
        """Whether messages are signed, and unsigned ones refused."""
        return self.signing_key is not None


def broker_settings() -> BrokerSettings:
    """Reads the settings from the environment.

    Raises:
        InvalidInputError: a value is invalid; names the variable.
    """
    return read_settings(BrokerSettings)
