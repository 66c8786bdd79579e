"""A folder whose files may be run as code, because only the user who reads them can have written them."""

import contextlib
import hashlib
import os
import secrets
import stat
import time
from pathlib import Path
from typing import Self

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
MAX_FILE_BYTES = 2**30
"""Larger files are not read; the programs of the largest published model have a few megabytes each."""
MAX_PARTIAL_SECONDS = 3600.0
"""Age of an unfinished file at which it counts as left over by a process that was killed."""
TOUCH_SECONDS = 3600.0
"""Interval at which the time of a file's last use is recorded."""

SUFFIX = ".program"
PARTIAL = ".partial"
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OURS = (SUFFIX, PARTIAL, "-cache")
"""Ends of the names of files that `trim` may remove; the last one is that of JAX's own cache."""
_MAGIC = b"smalti program 1\n"


class PrivateFolder:
    """Files by name, each with its checksum; damage looks as if the file were missing.

    The folder is opened once, so that exchanging it for another one later has no effect. Several processes may use it
    at the same time.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        """Takes ownership of an open folder that was checked; `open` makes one."""
        self.path = path
        self._descriptor = descriptor
        self.read_only = False
        """Whether `write` and `trim` do nothing."""

    @classmethod
    def open(cls, path: Path, *, trust_parents: bool = False) -> Self:
        """Opens a folder; creates it for this user alone if it is missing.

        Args:
            path: the folder.
            trust_parents: whether nobody else reaches the folders above it, whatever their permissions say.

        Raises:
            PermissionError: others can write to it or replace it; names the folder.
            OSError: it cannot be created or opened.
        """
        path = path.absolute()
        # Parents too, since with a umask of 002 the group could replace what is in them.
        for each in reversed((path, *path.parents)):
            each.mkdir(mode=0o700, exist_ok=True)
        path = path.resolve()
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _check_owner(path, os.fstat(descriptor))
            for parent in () if trust_parents else path.parents:
                _check_parent(parent)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor)

    def find_problem(self) -> str:
        """Returns why no file can be written, for instance on a read-only file system; empty if one can."""
        name = f".{secrets.token_hex(4)}{PARTIAL}"
        try:
            os.close(os.open(name, _NEW, 0o600, dir_fd=self._descriptor))
            os.unlink(name, dir_fd=self._descriptor)
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def load(self, name: str) -> bytes | None:
        """Returns the content of a file; None if it is missing, damaged, or not this user's own."""
        try:
            stored = self.read(name + SUFFIX)
        except OSError:
            return None
        header = len(_MAGIC) + hashlib.sha256().digest_size
        content = stored[header:]
        intact = stored[:header] == _MAGIC + hashlib.sha256(content).digest()
        return content if intact else None

    def read(self, name: str) -> bytes:
        """Returns the bytes of a file of this user's own.

        Raises:
            OSError: it is missing, somebody else could have written it, or it is too large.
        """
        # Neither a link to elsewhere nor a pipe that never ends.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(name, flags, dir_fd=self._descriptor), "rb") as file:
            status = os.fstat(file.fileno())
            if not _is_private(status) or not stat.S_ISREG(status.st_mode):
                raise PermissionError(f"{self.path / name} is not a file that only this user can write")
            if status.st_size > MAX_FILE_BYTES:
                raise OSError(f"{self.path / name} has more than {MAX_FILE_BYTES} bytes")
            stored = file.read()
            if time.time() - status.st_mtime > TOUCH_SECONDS:
                with contextlib.suppress(OSError):  # On a read-only file system.
                    os.utime(file.fileno())
        return stored

    def write(self, name: str, content: bytes) -> None:
        """Writes a file atomically; raises `OSError`."""
        if self.read_only:
            return
        partial = f".{name}.{secrets.token_hex(4)}{PARTIAL}"
        descriptor = os.open(partial, _NEW, 0o600, dir_fd=self._descriptor)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_MAGIC + hashlib.sha256(content).digest())
                file.write(content)
            os.rename(partial, name + SUFFIX, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial, dir_fd=self._descriptor)
            raise

    def trim(self, max_bytes: int) -> None:
        """Removes the files that were used longest ago until the others fit, and what killed processes left over."""
        if self.read_only:
            return
        found: list[tuple[float, int, str]] = []
        with os.scandir(self._descriptor) as entries:
            for entry in entries:
                if entry.name.endswith(_OURS):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        found.append((status.st_mtime, status.st_size, entry.name))
        total = sum(size for _, size, _ in found)
        now = time.time()
        for modified, size, name in sorted(found):
            left_over = name.endswith(PARTIAL) and now - modified > MAX_PARTIAL_SECONDS
            if total <= max_bytes and not left_over:
                continue
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._descriptor)
            total -= size


def _is_private(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & OTHERS_WRITE


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to user {status.st_uid}")
    if status.st_mode & OTHERS_WRITE:
        raise PermissionError(f"others can write to {path}; chmod go-w {path}")


def _check_parent(path: Path) -> None:
    """Checks that nobody else can replace the folders in this one."""
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()):
        raise PermissionError(f"{path} belongs to user {status.st_uid}, who can replace what is in it")
    # With the sticky bit, as in /tmp, only the owner of a folder can replace it.
    if status.st_mode & OTHERS_WRITE and not status.st_mode & stat.S_ISVTX:
        raise PermissionError(f"others can write to {path}, and replace what is in it; chmod go-w {path}")
