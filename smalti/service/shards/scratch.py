"""Folders for files of shards, which are too large for memory."""

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from smalti.errors import StoreUnavailableError
from smalti.files import temporary_folder

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EMFILE, errno.ENOENT)
"""Errors of the folder for temporary files."""


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yields a folder as `temporary_folder` does.

    Raises:
        StoreUnavailableError: the folder for temporary files is full or cannot be used, which is no fault of the shard.
    """
    try:
        with temporary_folder() as folder:
            yield folder
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise StoreUnavailableError(f"{tempfile.gettempdir()}: {error.strerror}") from error
