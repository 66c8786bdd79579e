"""Folders for files that are too large for memory; those of a process that was killed are removed by the next one."""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from smalti.errors import StoreUnavailableError

PREFIX: Final = "smalti-shard-"
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EMFILE, errno.ENOENT)
"""Errors of the folder for temporary files."""


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yields an empty folder below the system's folder for temporary files, and removes it with its files.

    The lock on a folder ends with its process, whatever ends it. So a folder without a lock is nobody's any more.

    Raises:
        StoreUnavailableError: the folder for temporary files is full or cannot be used, which is no fault of the shard.
    """
    try:
        with _locked_folder() as folder:
            yield folder
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise StoreUnavailableError(f"{tempfile.gettempdir()}: {error.strerror}") from error


@contextmanager
def _locked_folder() -> Iterator[Path]:
    remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def remove_abandoned() -> None:
    """Removes the folders of this user's processes that have ended without removing them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            if folder.stat().st_uid != os.getuid() or not any(folder.iterdir()):
                continue  # An empty one may be about to be locked.
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue  # Another process was faster.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue  # Its process works with it.
        finally:
            os.close(descriptor)
