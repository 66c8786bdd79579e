"""Reading `config.json`: what a model's size is, and the refusal of what the published models do not have."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smalti.errors import ConfigError
from smalti.files import read_json_object


def read_config(folder: Path) -> dict[str, Any]:
    """Reads `config.json` of a folder.

    Raises:
        ModelError: the folder or the file is missing, or the file is no JSON object.
    """
    folder = Path(folder)
    return read_json_object(
        folder / "config.json", f"{folder}: no config.json in it; a model's folder has one beside its weights"
    )


def refuse_other_options(model: str, fields: Mapping[str, Any], published: Mapping[str, Any]) -> None:
    """Refuses a configuration in which an option differs from the only value that is implemented.

    Raises:
        ConfigError: names the option, its value, and the value of the published models.
    """
    for option, value in published.items():
        asked = fields.get(option, value)
        if asked != value:
            raise ConfigError(
                f"{option}: {json.dumps(asked)} is not implemented; "
                f"{model} is built as published, with {json.dumps(value)}"
            )


def whole_number(fields: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """Returns a size from the configuration.

    Raises:
        ConfigError: it is missing and has no default, or is no whole number above zero.
    """
    value = fields.get(name, default)
    if value is None:
        raise ConfigError(f"{name}: missing from config.json; a whole number above zero is expected")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}: {json.dumps(value)} is not a whole number above zero")
    return value
