"""The protocol of object stores, and what all of them share."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol, runtime_checkable

from smalti.errors import DamagedObjectError
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

    def stat(self, key: str) -> ObjectInfo | None:
        """Returns the description of an object, or None if it does not exist."""
        ...

    def delete(self, *keys: str) -> None:
        """Deletes objects; missing ones are ignored."""
        ...

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yields all objects whose keys begin with the prefix, sorted by key."""
        ...

    def presigned_url(self, key: str, *, seconds: float) -> str:
        """Returns a URL that lets anybody read the object for a time, without checking that it exists."""
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


def verified(key: str, content: bytes, stored: str | None, wanted: str | None) -> bytes:
    """Returns the content if it has the stored and the wanted checksum; otherwise raises `DamagedObjectError`."""
    found = digest(content)
    if stored is None:
        raise DamagedObjectError(key, "no checksum; it was not written by Smalti")
    if found != stored:
        raise DamagedObjectError(key, f"its {len(content)} bytes do not match its checksum")
    if wanted is not None and found != wanted:
        raise DamagedObjectError(key, "its content is not that which the message refers to")
    return content


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
