"""The settings of logs and metrics. Those of traces are OpenTelemetry's own variables."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from smalti.settings import PREFIX, EnvironmentSettings

LOG_PREFIX = f"{PREFIX}LOG_"
METRICS_PREFIX = f"{PREFIX}METRICS_"


class LogFormat(StrEnum):
    """How a line of the log is written."""

    CONSOLE = "console"
    """For people."""
    JSON = "json"
    """For programs: an object a line."""


class LogLevel(StrEnum):
    """What is left out of the log: everything below."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogSettings(EnvironmentSettings):
    """The settings; see `EnvironmentSettings`."""

    model_config = SettingsConfigDict(env_prefix=LOG_PREFIX)

    format: LogFormat | None = None
    """How lines are written: `console`, for people, or `json`; unset, it is `console` at a terminal, else `json`."""
    level: LogLevel = LogLevel.INFO
    """The least that is written: `debug`, `info`, `warning` or `error`. Prompts are written with `debug` alone."""


class MetricsSettings(EnvironmentSettings):
    """The settings; see `EnvironmentSettings`."""

    model_config = SettingsConfigDict(env_prefix=METRICS_PREFIX)

    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """The port at which `/metrics` is answered over HTTP; 0 is a free one. Unset, there is none."""
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """The address that it listens at; `0.0.0.0` or `::` for all of the machine."""
