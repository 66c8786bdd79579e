"""Which version of the messages is written. A field's variable is its name after `SMALTI_MESSAGES_`."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from smalti.messages.envelope import DEFAULT_VERSION, VERSION
from smalti.settings import PREFIX, EnvironmentSettings, read_settings

MESSAGES_PREFIX = f"{PREFIX}MESSAGES_"


class MessageSettings(EnvironmentSettings):
    """The settings of messages."""

    model_config = SettingsConfigDict(env_prefix=MESSAGES_PREFIX)

    write: Annotated[int, Field(ge=2, le=VERSION)] = DEFAULT_VERSION
    """Version of the messages that the gateway writes, 2 or 3. Services of 0.2.0 read version 2 at most, so turn it to
    3 once none is left; workers say hello to the gateway from then on."""


def message_settings() -> MessageSettings:
    """Reads the settings from the environment.

    Raises:
        InvalidInputError: a setting is invalid; names the variable.
    """
    return read_settings(MessageSettings)
