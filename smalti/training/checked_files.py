"""TOML and JSON files that people write, checked by a pydantic model."""

import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from smalti.errors import InvalidInputError
from smalti.validation import first_problem

Model = TypeVar("Model", bound=BaseModel)


def load_toml(path: Path) -> dict[str, Any]:
    """Loads a TOML file.

    Raises:
        InvalidInputError: the file cannot be read or is not valid TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInputError(str(path), f"cannot be read as TOML ({error})") from None


def load_json(path: Path) -> Any:
    """Loads a JSON file.

    Raises:
        InvalidInputError: the file cannot be read or is not valid JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InvalidInputError(str(path), f"cannot be read as JSON ({error})") from None


def check_fields(path: Path, kind: type[Model], fields: object) -> Model:
    """Returns what a file holds as a model.

    Args:
        path: the file, which the error names.
        kind: the model.
        fields: content of the file.

    Raises:
        InvalidInputError: a key is unknown or a value is wrong; the error names the first one.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        problem = first_problem(error)
        field = f"{path}: {problem.field}" if problem.field else str(path)
        raise InvalidInputError(field, problem.message) from None
