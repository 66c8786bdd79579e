"""The protocol of object stores, and what all of them share."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from smalti.errors import DamagedObjectError, StoreUnavailableError
from smalti.storage.keys import JOBS, ObjectRef, is_intermediate


@dataclass(frozen=True)
class ObjectInfo:
    """The description of an object, without its content."""

    key: str
    size: int
    """Size of the object in bytes."""
    modified: datetime
    """Time of the last write, with time zone."""
    sha256: str | None = None
    """SHA-256 of the content; None in a listing."""


@runtime_checkable
class ObjectStore(Protocol):
    """Stores objects by key; thread-safe. Calls block.

    Writes are atomic and may be repeated. Every method may raise `StoreUnavailableError`, and `InvalidInputError` for
    an invalid key.
    """

    def put(self, key: str, content: bytes, *, content_type: str = "application/octet-stream") -> ObjectRef:
        """Writes or replaces an object, which is durable when the call returns."""
        ...

    def create(self, key: str, content: bytes, *, content_type: str = "application/octet-stream") -> bool:
        """Writes an object unless there is one with this key.

        A store that cannot compare replaces the object. So use it where a later writer does no harm, but costs work.

        Returns:
            Whether it was written.
        """
        ...

    def put_file(self, key: str, path: Path, *, content_type: str = "application/octet-stream") -> ObjectRef:
        """Writes or replaces an object with the content of a file, which is not held in memory as a whole.

        A file that cannot be read counts as a store that is unavailable.
        """
        ...

    def copy(self, source: ObjectRef, key: str) -> ObjectRef:
        """Writes or replaces an object with the content of another one, which the store copies by itself.

        Raises:
            MissingObjectError: the source does not exist.
        """
        ...

    def get(self, key: str, *, sha256: str | None = None) -> bytes:
        """Reads an object.

        Args:
            key: the key of the object.
            sha256: the SHA-256 that the content must have; None accepts the last content that was written.

        Raises:
            MissingObjectError: the object does not exist.
            DamagedObjectError: the content is not what was written, or does not have the given SHA-256.
        """
        ...

    def get_file(self, key: str, path: Path, *, sha256: str | None = None) -> None:
        """Writes an object to a file, which is never seen half-written, and does not hold it in memory as a whole.

        Args:
            key: the key of the object.
            path: the file; replaced if it exists.
            sha256: as in `get`. With it, objects can be read that were not written by Smalti.

        Raises:
            MissingObjectError: the object does not exist.
            DamagedObjectError: the content is not what was written, or does not have the given SHA-256.
            StoreUnavailableError: also raised if the file cannot be written.
        """
        ...

    def read(self, key: str, start: int, length: int) -> bytes:
        """Reads a part of an object, without verifying it.

        Args:
            key: the key of the object.
            start: position of the first byte; not negative.
            length: number of bytes; positive.

        Returns:
            The bytes; fewer at the end of the object, and none behind it.

        Raises:
            MissingObjectError: the object does not exist.
        """
        ...

    def open_object(self, key: str) -> BinaryIO:
        """Opens an object for reading, without verifying it; it is read in parts, and can be sought in.

        Raises:
            MissingObjectError: the object does not exist; also raised by the file's methods.
        """
        ...

    def stat(self, key: str) -> ObjectInfo | None:
        """Returns the description of an object, or None if it does not exist."""
        ...

    def delete(self, *keys: str) -> None:
        """Deletes objects; missing ones are ignored."""
        ...

    def objects(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        """Yields all objects whose keys begin with the prefix and follow `after`, sorted by key."""
        ...

    def presigned_url(self, key: str, *, seconds: float) -> str:
        """Returns a URL that lets anybody read the object for a time, without checking that it exists."""
        ...

    def presigned_upload(self, key: str, *, seconds: float) -> str:
        """Returns a URL to which anybody can upload the object for a time, by PUT; empty if the store has none.

        What is uploaded has no SHA-256 with it: read it with `open_object`, or with its SHA-256 from elsewhere.
        """
        ...

    def expire_after(self, days: int) -> bool:
        """Makes the store delete objects of jobs after some days; 0 keeps them.

        Returns:
            False if the store does not support it; call `sweep` regularly instead.
        """
        ...

    def check(self) -> None:
        """Checks that the store answers and accepts writes."""
        ...


def digest(content: bytes) -> str:
    """Returns the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def digest_of_file(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal; raises `StoreUnavailableError` if it cannot be read."""
    with using_file(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def using_file(path: Path) -> Iterator[None]:
    """Translates errors of a local file, such as a full disk, into `StoreUnavailableError`."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailableError(f"{path}: {error.strerror or error}") from error


def verified(key: str, content: bytes, stored: str | None, wanted: str | None) -> bytes:
    """Returns the content if it has the stored and the wanted checksum; otherwise raises `DamagedObjectError`."""
    check_digest(key, digest(content), len(content), stored, wanted)
    return content


def check_digest(key: str, found: str, size: int, stored: str | None, wanted: str | None) -> None:
    """Raises `DamagedObjectError` unless an object has the stored and the wanted checksum.

    Args:
        key: the key of the object.
        found: the SHA-256 of what was read.
        size: the number of bytes that were read.
        stored: the SHA-256 that the store has with the object; None if there is none.
        wanted: the SHA-256 that the caller wants; None if any will do.
    """
    if stored is None and wanted is None:
        raise DamagedObjectError(key, "no checksum; it was not written by Smalti")
    if stored is not None and found != stored:
        raise DamagedObjectError(key, f"its {size} bytes do not match its checksum")
    if wanted is not None and found != wanted:
        raise DamagedObjectError(key, "its content is not that which the message refers to")


def find(store: ObjectStore, *keys: str) -> tuple[ObjectRef, ...] | None:
    """Returns references to the objects if all of them exist, otherwise None.

    A stage uses it to find out whether the work of a message of version 1 is done already.
    """
    found: list[ObjectRef] = []
    for key in keys:
        info = store.stat(key)
        if info is None or info.sha256 is None:
            return None
        found.append(ObjectRef(key=key, sha256=info.sha256))
    return tuple(found)


def sweep(
    store: ObjectStore, older_than: timedelta, *, intermediate: bool = True, now: datetime | None = None
) -> int:
    """Deletes old objects of jobs.

    Args:
        store: the store to sweep.
        older_than: the minimum age, counted from the last write.
        intermediate: delete only objects without use once a job has ended (see `is_intermediate`); otherwise all.
        now: None reads the clock.

    Returns:
        The number of deleted objects.
    """
    limit = (now or datetime.now(UTC)) - older_than
    batch: list[str] = []
    removed = 0
    for info in store.objects(JOBS):
        if info.modified < limit and (not intermediate or is_intermediate(info.key)):
            batch.append(info.key)
        if len(batch) == 1000:
            store.delete(*batch)
            removed, batch = removed + len(batch), []
    store.delete(*batch)
    return removed + len(batch)
