"""The settings of logs and metrics. Traces use OpenTelemetry's own variables."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from smalti.settings import PREFIX, EnvironmentSettings, Host

LOG_PREFIX = f"{PREFIX}LOG_"
METRICS_PREFIX = f"{PREFIX}METRICS_"


class LogFormat(StrEnum):
    """The format of a log line."""

    CONSOLE = "console"
    """Readable text."""
    JSON = "json"
    """A JSON object per line."""


class LogLevel(StrEnum):
    """The lowest level that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogSettings(EnvironmentSettings):
    """The settings of the log."""

    model_config = SettingsConfigDict(env_prefix=LOG_PREFIX)

    format: LogFormat | None = None
    """Format of the log: `console` or `json`. Unset: `console` at a terminal, otherwise `json`."""
    level: LogLevel = LogLevel.INFO
    """Lowest level that is logged: `debug`, `info`, `warning` or `error`. Prompts are logged at `debug` only."""
    audit: Path | None = None
    """File to which the audit log is appended as JSON, one object a line: refused calls, uses of keys, acts of admins.
    Unset: they are lines of the log, whatever its level."""


class MetricsSettings(EnvironmentSettings):
    """The settings of the metrics endpoint."""

    model_config = SettingsConfigDict(env_prefix=METRICS_PREFIX)

    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """HTTP port that serves `/metrics`; 0 picks a free one. Unset: metrics are not served."""
    host: Host = "127.0.0.1"
    """Address to listen on for `/metrics`; `0.0.0.0` or `::` for all interfaces."""
