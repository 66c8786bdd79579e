"""The settings of a service's process: the variable of a field is its name after `SMALTI_SERVICE_`."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from smalti.settings import PREFIX, EnvironmentSettings, Seconds, read_settings

SERVICE_PREFIX = f"{PREFIX}SERVICE_"


class ServiceSettings(EnvironmentSettings):
    """The settings; see `EnvironmentSettings`."""

    model_config = SettingsConfigDict(env_prefix=SERVICE_PREFIX)

    concurrency: Annotated[int, Field(ge=1, le=256)] | None = None
    """How many messages a stage works on at the same time. Unset, it is 4 for an encoder, 2 for a decoder and a ranker,
    and for a generator a quarter of its slots and 2 more, so that chunks of 4 candidates fill the slots and the next
    ones are at hand."""
    slots: Annotated[int, Field(ge=1, le=1024)] = 16
    """A generator's slots: how many candidates it draws at the same time; memory grows with them."""
    waiting: Annotated[int, Field(ge=1, le=2**20)] | None = None
    """How much may wait for the engine before calls are refused with RESOURCE_EXHAUSTED: candidates for a generator
    (unset: 1024), calls for the others (unset: 64)."""
    stall: Seconds = 120.0
    """The seconds without progress after which an engine that has work is given up, and the process ends; longer than
    the engine ever takes for one quantum or one picture."""
    cancel_poll: Seconds = 0.25
    """The seconds between two looks for whether a job that is being worked on was cancelled."""
    grace: Seconds = 29.0
    """The seconds after SIGTERM or SIGINT in which the process has ended, whatever hangs. Longer than
    `SMALTI_BROKER_DRAIN` and `SMALTI_RPC_GRACE`, shorter than the time after which it would be killed."""


def service_settings() -> ServiceSettings:
    """Reads the settings from the environment as it is now.

    Raises:
        InvalidInputError: names the variable whose value cannot be used.
    """
    return read_settings(ServiceSettings)
