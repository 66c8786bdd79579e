"""Reading the JSON files of a model."""

import json
from pathlib import Path
from typing import Any

from smalti.errors import ModelError


def read_json_object(path: Path, missing: str) -> dict[str, Any]:
    """Reads a file that holds a JSON object.

    Args:
        path: the file.
        missing: what to say when it is not there.

    Raises:
        ModelError: it is not there, cannot be read, or holds no JSON object.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(missing) from None
    # The last for brackets in brackets in brackets.
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{path}: a JSON object is expected, not {type(fields).__name__}")
    return fields
