"""A lock on an output that names who holds it; the end of the process frees it, whatever its end."""

import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from smalti.errors import InvalidInputError

_WITHOUT_LOCKS: Final = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""Errors of file systems that have no locks, some network file systems; outputs there are not locked."""


@contextmanager
def locked(file: Path, out: Path, field: str) -> Iterator[None]:
    """Holds the lock of an output while the block runs.

    Args:
        file: the file that is locked; removed at the end.
        out: the output as the user named it, for errors.
        field: the argument that names the output, for errors.

    Raises:
        InvalidInputError: another process holds the lock; names that process.
        OSError: the file cannot be made.
    """
    descriptor = _open_locked(file, out, field)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_me()).encode(), 0)
        yield
    finally:
        # Removed while it is still locked: who opens it later finds another file, or none.
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _open_locked(file: Path, out: Path, field: str) -> int:
    while True:
        # A link with this name could lead to any file of the user.
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise InvalidInputError(
                field, f"{out} is being written by {holder}; wait for its end, or give another place"
            ) from None
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                os.close(descriptor)
                raise
        # The holder before may have removed the file after it was opened here.
        try:
            if os.path.samestat(os.fstat(descriptor), file.stat(follow_symlinks=False)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _me() -> dict[str, str | int]:
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(sep=" ", timespec="seconds"),
        "command": Path(sys.argv[0]).name if sys.argv else "",
    }


def _holder(descriptor: int) -> str:
    """Returns the process that holds a lock, as it has written there."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['process']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return "another process"
