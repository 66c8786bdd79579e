"""The settings of webhooks. The variable of a field is `SMALTI_WEBHOOK_` and the field's name."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from smalti.settings import PREFIX, EnvironmentSettings, Seconds, read_settings

WEBHOOK_PREFIX = f"{PREFIX}WEBHOOK_"


class WebhookSettings(EnvironmentSettings):
    """The settings."""

    model_config = SettingsConfigDict(env_prefix=WEBHOOK_PREFIX)

    private: bool = False
    """1: webhooks may be private, loopback and link-local addresses, and `http` URLs. Otherwise a tenant could have the
    gateway send requests to servers that only it reaches."""
    timeout: Seconds = 15.0
    """Time within which a receiver must answer, from the look-up of its name to the status of its answer."""
    together: Annotated[int, Field(ge=1, le=256)] = 32
    """Maximum number of notices that are on their way at the same time; a tenant has at most a quarter of them, and a
    host an eighth, so that slow receivers do not hold up others."""


def webhook_settings() -> WebhookSettings:
    """Reads the settings from the environment.

    Raises:
        InvalidInputError: a value is invalid; names the variable.
    """
    return read_settings(WebhookSettings)
