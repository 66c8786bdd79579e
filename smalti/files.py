"""Writing files and folders so that nothing half-written is ever seen under their name, and reading JSON."""

import errno
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smalti.errors import InvalidInputError, ModelError, SmaltiError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`, and renames it to `path` when the block ends well.

    When the block raises (an error, Ctrl-C, a full disk) the temporary file is removed and `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a whole file, or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def staged(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty folder that takes the name `folder` when the block ends well, and vanishes otherwise.

    Args:
        folder: the name; what is in it goes away at the end with `overwrite`.
        overwrite: without it, `folder` must be missing or empty.

    Raises:
        InvalidInputError: `folder` has something in it, or is no folder.
        SmaltiError: the disk is full or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError("out", f"{folder} is a file, not a folder")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise InvalidInputError("out", f"{folder} is not empty; give another folder or --overwrite")
    # Beside its final place: a rename does not cross file systems.
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError as error:
        problem = "the disk is full" if error.errno in _FULL else (error.strerror or str(error))
        raise SmaltiError(f"{folder} cannot be written: {problem}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
