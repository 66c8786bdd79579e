"""The settings of a service's process; each is read from the variable `SMALTI_SERVICE_<NAME>`."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from smalti.messages import MAX_HELLO_SECONDS
from smalti.settings import PREFIX, EnvironmentSettings, Seconds, read_settings

SERVICE_PREFIX = f"{PREFIX}SERVICE_"


class ServiceSettings(EnvironmentSettings):
    """Settings of a service's process."""

    model_config = SettingsConfigDict(env_prefix=SERVICE_PREFIX)

    concurrency: Annotated[int, Field(ge=1, le=256)] | None = None
    """Maximum number of messages that a stage handles at the same time. If unset, 4 for an encoder, 2 for a decoder, a
    ranker and a refiner, and a quarter of the slots plus 2 for a generator: then chunks of 4 candidates fill the slots
    and the next ones are ready."""
    shards: Annotated[int, Field(ge=1, le=64)] = 2
    """Maximum number of shards of batches that a stage works on at the same time, beside `SMALTI_SERVICE_CONCURRENCY`
    messages of jobs. With two, one keeps the engine busy while the other is read or written."""
    slots: Annotated[int, Field(ge=1, le=1024)] = 16
    """Number of candidates that a generator processes at the same time; memory grows with it."""
    waiting: Annotated[int, Field(ge=1, le=2**20)] | None = None
    """Maximum queue for the engine, beyond which calls are refused with RESOURCE_EXHAUSTED: candidates in a generator
    (1024 if unset), calls in the other services (64 if unset)."""
    stall: Seconds = 120.0
    """Time in seconds without progress after which a busy engine counts as dead and the process ends. It must be longer
    than the engine takes for one dispatch or one picture."""
    cancel_poll: Seconds = 0.25
    """Interval between cancellation checks, in seconds."""
    hello: Annotated[float, Field(gt=0, le=MAX_HELLO_SECONDS)] = 5.0
    """Interval in seconds at which a stage tells the gateways that it is there, if `SMALTI_MESSAGES_WRITE` is 3; after
    three of them without a word it counts as gone."""
    grace: Seconds = 29.0
    """Time in seconds after SIGTERM or SIGINT at which the process ends even if something hangs. It must be longer than
    `SMALTI_BROKER_DRAIN` and `SMALTI_RPC_GRACE`, and shorter than the time after which the supervisor kills it."""


def service_settings() -> ServiceSettings:
    """Reads the settings from the environment.

    Raises:
        InvalidInputError: a setting is invalid; names the variable.
    """
    return read_settings(ServiceSettings)
