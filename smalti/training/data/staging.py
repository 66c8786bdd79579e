"""Folders that appear whole or not at all."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smalti.errors import InvalidInputError, SmaltiError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


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
