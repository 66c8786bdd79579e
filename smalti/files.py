"""Atomic writing of files and folders, and reading of files."""

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
    """Yields a temporary path beside `path`, which is renamed to `path` if the block succeeds.

    If the block raises (an error, Ctrl-C, a full disk), the temporary file is removed and `path` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def staged(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty folder that is renamed to `folder` if the block succeeds, and removed otherwise.

    Args:
        folder: the final path.
        overwrite: whether to replace the content of `folder`; otherwise it must be missing or empty.

    Raises:
        InvalidInputError: `folder` is not empty, or is a file.
        SmaltiError: the folder cannot be written, or the disk is full.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError("out", f"{folder} is a file, not a folder")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise InvalidInputError("out", f"{folder} is not empty; give another folder, or --overwrite")
    # In the same parent folder, because a rename cannot cross file systems.
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


def load_content(file: bytes | Path, field: str) -> bytes:
    """Returns the content of a user's file.

    Args:
        file: the path of the file, or its content.
        field: the argument or option that the user gave it with, for errors.

    Raises:
        InvalidInputError: the file cannot be read.
    """
    if isinstance(file, bytes):
        return file
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidInputError(field, f"{file}: cannot be read ({error.strerror})") from None


def read_json_object(path: Path, missing: str) -> dict[str, Any]:
    """Reads a file that holds a JSON object.

    Args:
        path: the file.
        missing: the error message if there is no such file.

    Raises:
        ModelError: the file is missing, cannot be read, or does not hold a JSON object.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(missing) from None
    # RecursionError: deeply nested brackets.
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{path}: must hold a JSON object, not {type(fields).__name__}")
    return fields
