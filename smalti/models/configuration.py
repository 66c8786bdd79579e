"""Reading and checking the fields of `config.json`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smalti.errors import ConfigError
from smalti.files import read_json_object


def read_config(folder: Path) -> dict[str, Any]:
    """Reads the `config.json` of a folder.

    Raises:
        ModelError: the folder or the file is missing, or the file does not hold a JSON object.
    """
    folder = Path(folder)
    return read_json_object(
        folder / "config.json", f"{folder}: has no config.json; put the one of the weights there"
    )


def check_options(model: str, fields: Mapping[str, Any], published: Mapping[str, Any]) -> None:
    """Checks that options have the only value that is implemented, that of the published models.

    Raises:
        ConfigError: an option has another value; names the option and both values.
    """
    for option, value in published.items():
        asked = fields.get(option, value)
        if asked != value:
            raise ConfigError(
                f"{option}: {json.dumps(asked)} is not implemented; {model} has only {json.dumps(value)}"
            )


def positive_integer(fields: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """Returns a size from the configuration.

    Raises:
        ConfigError: it is missing without a default, or not a positive integer.
    """
    value = fields.get(name, default)
    if value is None:
        raise ConfigError(f"{name}: missing from config.json; must be a positive integer")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}: {json.dumps(value)} must be a positive integer")
    return value
