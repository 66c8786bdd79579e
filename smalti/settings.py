"""Every setting, from the environment: the variable of a field of `Settings` is its name after `SMALTI_`."""

import os
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from smalti.errors import InvalidInputError
from smalti.validation import first_problem

PREFIX = "SMALTI_"

Seconds = Annotated[float, Field(gt=0, le=7 * 24 * 3600, allow_inf_nan=False)]
"""A time that may be set: more than none, and no more than a week."""

SettingsKind = TypeVar("SettingsKind", bound=BaseSettings)


def _base_folder(variable: str, default: str) -> Path:
    """Returns a folder of the XDG base directory specification, which says to ignore a relative one."""
    folder = Path(os.environ.get(variable, ""))
    return (folder if folder.is_absolute() else Path.home() / default) / "smalti"


def data_folder() -> Path:
    """Returns the folder in which Smalti keeps what belongs to the user."""
    return _base_folder("XDG_DATA_HOME", ".local/share")


def _models_folder() -> Path:
    return data_folder() / "models"


def _compilation_cache_folder() -> Path:
    return _base_folder("XDG_CACHE_HOME", ".cache") / "compiled"


class EnvironmentSettings(BaseSettings):
    """What all settings have in common: a field's text says what the documentation says; an empty variable is none."""

    model_config = SettingsConfigDict(
        env_ignore_empty=True, extra="ignore", frozen=True, use_attribute_docstrings=True
    )


class Settings(EnvironmentSettings):
    """The settings that are no service's own."""

    # Here an empty variable may have a meaning.
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=False)

    models: Path = Field(default_factory=_models_folder)
    """The folder in which models are found by name, and into which they are imported."""
    model: str | None = None
    """The model that is used when none is named; unset, it is the one that comes with Smalti."""
    server: str | None = None
    """The gateway that clients call, as host:port; with it `smalti generate` draws there instead of here."""
    offline: bool = False
    """Take what is pulled from the hub from the cache alone, without the network."""
    hub_cache: Path | None = None
    """The folder in which downloads from the hub are kept; unset, it is the hub library's own."""
    hub_endpoint: str | None = None
    """The address of a mirror of the Hugging Face hub; unset, it is the hub itself."""
    compilation_cache: Path | None = Field(default_factory=_compilation_cache_folder)
    """The folder in which compiled programs are kept, so that the next start is quick; empty, none are kept. Whoever
    can write to it can run code in Smalti: it must belong to the user who runs Smalti."""
    generator_mesh: str = "1x1"
    """The devices over which the generator is laid, as two numbers: how many share the slots, and how many share each
    layer, for a model that is larger than one device."""

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_is_empty(cls, values: dict[str, Any]) -> dict[str, Any]:
        """An empty variable is as good as none, but for the compilation cache, which it switches off."""
        kept = {name: value for name, value in values.items() if value != ""}
        return {**kept, "compilation_cache": None} if values.get("compilation_cache") == "" else kept


def settings() -> Settings:
    """Reads the settings from the environment as it is now.

    Raises:
        InvalidInputError: names the variable whose value cannot be used.
    """
    return read_settings(Settings)


def read_settings(kind: type[SettingsKind]) -> SettingsKind:
    """Reads settings of one kind from the environment as it is now.

    Raises:
        InvalidInputError: names the variable whose value cannot be used.
    """
    try:
        return kind()
    except ValidationError as error:
        problem = first_problem(error)
        # Settings that contradict each other have no single field; the message names them.
        variable = f"{kind.model_config['env_prefix']}{problem.field.partition('.')[0].upper() or '*'}"
        raise InvalidInputError(variable, problem.message) from None
