"""Atomic writing of files, reading of files, and folders for temporary files."""

import errno
import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smalti.errors import InvalidInputError, ModelError
from smalti.foreign_text import parse_json

SCRATCH = "smalti-scratch-"
"""What the names of folders for temporary files begin with."""
UNLOCKED_SECONDS = 600.0
"""Time after which an empty folder for temporary files is not one that its process is about to lock."""
WITHOUT_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""Errors of file systems without hard links, such as FAT."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which is renamed to `path` if the block succeeds.

    If the block raises (an error, Ctrl-C, a full disk), the temporary file is removed and `path` stays as it was.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def create_file(path: Path, content: bytes) -> bool:
    """Writes a file atomically unless there is one; returns whether it was written.

    Of several that create one name at the same time, one succeeds.
    """
    temporary = _temporary(path)
    try:
        temporary.write_bytes(content)
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT_LINKS:
            raise
        return _create_plainly(path, content)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a file a second name; copies it where the file system cannot link. A link is followed."""
    try:
        target.hardlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yields an empty folder below the system's folder for temporary files, and removes it with its files.

    The lock on a folder ends with its process, whatever ends it. So a folder without a lock is nobody's any more, and
    the next process that needs one removes it.
    """
    _remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=SCRATCH))
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _remove_abandoned() -> None:
    """Removes the folders of this user's processes that have ended without removing them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        try:
            status = folder.stat()
            is_new = time.time() - status.st_mtime < UNLOCKED_SECONDS
            if status.st_uid != os.getuid() or (is_new and not any(folder.iterdir())):
                continue  # A new, empty one may be about to be locked.
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


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _create_plainly(path: Path, content: bytes) -> bool:
    """Creates a file where the file system has no links; a reader may see it half-written."""
    try:
        file = path.open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


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
        fields = parse_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise ModelError(missing) from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    except InvalidInputError as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error.problem})") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{path}: must hold a JSON object, not {type(fields).__name__}")
    return fields
