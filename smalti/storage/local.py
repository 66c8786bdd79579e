"""An object store in a local folder."""

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from smalti.errors import DamagedObjectError, MissingObjectError, StoreUnavailableError
from smalti.files import WITHOUT_LINKS, atomic_path, write_atomically
from smalti.storage.keys import ObjectRef, check_key
from smalti.storage.reading import open_reader
from smalti.storage.store import ObjectInfo, check_digest, digest, digest_of_file, using_file, verified

Result = TypeVar("Result")

COPY_BYTES = 2**20
"""Bytes of an object that are held in memory when it is copied."""
_NOT_OURS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}
"""Errors of a folder that will not be ours by waiting."""


class LocalStore:
    """Keeps each object in a file named by its key, with the checksum in a hidden file beside it."""

    def __init__(self, folder: Path) -> None:
        """Creates the folder when the first object is written."""
        self.folder = folder.absolute()

    def put(self, key: str, content: bytes, *, content_type: str = "application/octet-stream") -> ObjectRef:  # noqa: D102
        return self._put(key, digest(content), lambda path: write_atomically(path, content))

    def put_file(  # noqa: D102
        self, key: str, path: Path, *, content_type: str = "application/octet-stream"
    ) -> ObjectRef:
        return self._put(key, digest_of_file(path), partial(_copy, path))

    def _put(self, key: str, sha256: str, write: Callable[[Path], None]) -> ObjectRef:
        path = self._path(key)

        def put() -> ObjectRef:
            path.parent.mkdir(parents=True, exist_ok=True)
            # First the checksum: a reader in between finds the object missing or damaged, never without a checksum.
            write_atomically(_checksum_path(path), sha256)
            write(path)
            return ObjectRef(key=key, sha256=sha256)

        return self._try(put)

    def create(self, key: str, content: bytes, *, content_type: str = "application/octet-stream") -> bool:  # noqa: D102
        path = self._path(key)

        def write() -> bool:
            path.parent.mkdir(parents=True, exist_ok=True)
            # One writer after another, so that checksum and object are of the same; the lock ends with its process.
            with _locked(path.parent):
                if path.exists():
                    return False
                write_atomically(_checksum_path(path), digest(content))
                write_atomically(path, content)
                return True

        return self._try(write)

    def copy(self, source: ObjectRef, key: str) -> ObjectRef:  # noqa: D102
        path = self._path(source.key)
        if self._try(path.exists):
            return self._put(key, source.sha256, partial(_link, path))
        raise MissingObjectError(source.key)

    def get(self, key: str, *, sha256: str | None = None) -> bytes:  # noqa: D102
        path = self._path(key)

        def read() -> bytes:
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                raise MissingObjectError(key) from None
            return verified(key, content, _read_checksum(path), sha256)

        try:
            return self._try(read)
        except DamagedObjectError:
            # The object may have been overwritten between the two reads.
            return self._try(read)

    def get_file(self, key: str, path: Path, *, sha256: str | None = None) -> None:  # noqa: D102
        source = self._path(key)

        def read() -> None:
            try:
                file = source.open("rb")
            except FileNotFoundError:
                raise MissingObjectError(key) from None
            hashed = hashlib.sha256()
            with file, using_file(path), atomic_path(path) as temporary, temporary.open("wb") as copy:
                while part := file.read(COPY_BYTES):
                    hashed.update(part)
                    copy.write(part)
                check_digest(key, hashed.hexdigest(), copy.tell(), _read_checksum(source), sha256)

        try:
            self._try(read)
        except DamagedObjectError:
            self._try(read)

    def read(self, key: str, start: int, length: int) -> bytes:  # noqa: D102
        path = self._path(key)

        def read() -> bytes:
            try:
                with path.open("rb") as file:
                    file.seek(start)
                    return file.read(length)
            except FileNotFoundError:
                raise MissingObjectError(key) from None

        return self._try(read)

    def open_object(self, key: str) -> BinaryIO:  # noqa: D102
        return open_reader(self, key)

    def stat(self, key: str) -> ObjectInfo | None:  # noqa: D102
        path = self._path(key)
        return self._try(lambda: self._info(path, _read_checksum(path)))

    def delete(self, *keys: str) -> None:  # noqa: D102
        for path in [self._path(key) for key in keys]:
            self._try(partial(_remove, path))

    def objects(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:  # noqa: D102
        above = self.folder / prefix.rpartition("/")[0]
        found: list[str] = self._try(
            lambda: [
                str((Path(folder) / name).relative_to(self.folder))
                for folder, _, names in os.walk(above)
                for name in names
                if not name.startswith(".")
            ]
        )
        for key in sorted(found):
            if key.startswith(prefix) and key > after:
                info = self._try(partial(self._info, self.folder / key, None))
                if info:
                    yield info

    def presigned_url(self, key: str, *, seconds: float) -> str:
        """Returns a `file:` URL, which works on this machine and does not expire."""
        return self._path(key).as_uri()

    def presigned_upload(self, key: str, *, seconds: float) -> str:
        """Returns nothing: nobody can upload to a file."""
        self._path(key)
        return ""

    def expire_after(self, days: int) -> bool:
        """Returns False: a folder does not expire objects."""
        return False

    def check(self) -> None:  # noqa: D102
        try:
            self._try(lambda: self.folder.mkdir(parents=True, exist_ok=True))
            self._try(lambda: write_atomically(self.folder / ".writable", b"yes"))
        except StoreUnavailableError as error:
            cause = error.__cause__
            error.transient = not (isinstance(cause, OSError) and cause.errno in _NOT_OURS)
            raise

    def _path(self, key: str) -> Path:
        # No part of a key begins with a dot, so the path cannot leave the folder.
        return self.folder / check_key(key)

    def _info(self, path: Path, sha256: str | None) -> ObjectInfo | None:
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        modified = datetime.fromtimestamp(status.st_mtime, UTC)
        return ObjectInfo(str(path.relative_to(self.folder)), status.st_size, modified, sha256)

    def _try(self, action: Callable[[], Result]) -> Result:
        try:
            return action()
        except OSError as error:
            raise StoreUnavailableError(f"object store {self.folder}: {error.strerror or error}") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _checksum_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


def _read_checksum(path: Path) -> str | None:
    try:
        return _checksum_path(path).read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _copy(source: Path, path: Path) -> None:
    with atomic_path(path) as temporary, using_file(source):
        shutil.copyfile(source, temporary)


def _link(source: Path, path: Path) -> None:
    """Gives a file a second name; both keep their content when the other is replaced."""
    try:
        with atomic_path(path) as temporary:
            temporary.hardlink_to(source)
    except OSError as error:
        if error.errno not in WITHOUT_LINKS:
            raise
        _copy(source, path)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _checksum_path(path).unlink(missing_ok=True)
