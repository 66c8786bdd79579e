"""The settings of the broker and its messages: the variable of a field is its name after `SMALTI_BROKER_`."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from smalti.settings import PREFIX, EnvironmentSettings, Seconds, read_settings

BROKER_PREFIX = f"{PREFIX}BROKER_"


class BrokerSettings(EnvironmentSettings):
    """The settings; see `EnvironmentSettings`."""

    model_config = SettingsConfigDict(env_prefix=BROKER_PREFIX)

    url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    """The broker: `redis://` or `rediss://` for Valkey and Redis, `amqp://` or `amqps://` for RabbitMQ, with user,
    password, host, port, and the database or virtual host. The forms with an `s` use TLS."""
    ca: Path | None = None
    """The authorities, as a PEM file, one of which must have signed the broker's certificate; unset, the system's."""
    certificate: Path | None = None
    """The certificate that is shown to the broker (mTLS), as a PEM file."""
    key: Path | None = None
    """The private key of that certificate, as a PEM file."""
    timeout: Seconds = 5.0
    """The seconds in which the broker must have taken a message; then the sender is told that it is unavailable."""
    visibility_timeout: Seconds = 600.0
    """With Valkey and Redis: the seconds after which a message that a worker has taken and not finished is given to
    another one. It must be longer than any stage takes, and the same for all services."""
    heartbeat: Annotated[int, Field(ge=2, le=600)] = 10
    """With RabbitMQ: the seconds between signs of life; after two without any the connection is made anew."""
    attempts: Annotated[int, Field(ge=1, le=100)] = 5
    """How often work is tried before it is given up and its message goes to the dead-letter queue."""
    deliveries: Annotated[int, Field(ge=3, le=15)] = 5
    """How often a message is delivered whose worker dies each time, before it goes to the dead-letter queue; three
    times at least, since less proves nothing."""
    retry_first: Seconds = 0.5
    """The seconds before work that has failed for a passing reason is tried again; they double with every attempt."""
    retry_max: Seconds = 30.0
    """The most seconds before work is tried again."""
    drain: Seconds = 25.0
    """The seconds that a worker which stops gives to the work it has begun; what is left goes back to the queue."""
    signing_key: Path | None = None
    """The private key, as a PEM file, with which messages are signed. With the two settings that follow it makes
    services refuse what is not signed by one of the trusted certificates."""
    signing_certificate: Path | None = None
    """The certificate of the signing key, as a PEM file."""
    signing_trusted: Path | None = None
    """The folder of the certificates (`*.pem`) whose signatures are accepted."""

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
            raise ValueError(f"signing needs all of its settings; {names} is not set")
        return self

    @property
    def signed(self) -> bool:
        """Whether messages are signed, and only signed ones accepted."""
        return self.signing_key is not None


def broker_settings() -> BrokerSettings:
    """Reads the settings from the environment as it is now.

    Raises:
        InvalidInputError: names the variable whose value cannot be used.
    """
    return read_settings(BrokerSettings)
