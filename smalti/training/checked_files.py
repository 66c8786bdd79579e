"""TOML and JSON files that people write, checked by a pydantic model."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from smalti.errors import InvalidInputError
from smalti.foreign_text import load_text, parse_json, parse_toml
from smalti.validation import first_problem

Model = TypeVar("Model", bound=BaseModel)


def load_toml(path: Path) -> dict[str, Any]:
    """Loads a TOML file.

    Raises:
        InvalidInputError: the file cannot be read or is not valid TOML.
    """
    return parse_toml(load_text(path), str(path))


def load_json(path: Path) -> Any:
    """Loads a JSON file.

    Raises:
        InvalidInputError: the file cannot be read or is not valid JSON.
    """
    return parse_json(load_text(path), str(path))


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
