"""The store of objects: what it promises, whatever is behind it."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from smalti.errors import DamagedObjectError
from smalti.storage.keys import JOBS, ObjectRef, is_intermediate


@dataclass(frozen=True)
class ObjectInfo:
    """What is known of an object without reading it."""

    key: str
    size: int
    """In bytes."""
    modified: datetime
    """With its time zone."""
    sha256: str | None = None
    """Of its content; None in a listing."""


class ObjectStore(Protocol):
    """Objects by their keys; every thread may use it, and every call blocks.

    Writing an object is all or nothing. Two writes of the same bytes are as good as one, so that whoever is unsure
    whether a write was done may write again. Every method may raise `StoreUnavailableError`, and `InvalidInputError`
    for a key that is none.
    """

    def put(self, key: str, content: bytes, *, content_type: str = "application/octet-stream") -> ObjectRef:
        """Writes an object, in place of one that is there; when it returns, the object is durable."""
        ...

    def get(self, key: str, *, sha256: str | None = None) -> bytes:
        """Reads an object.

        Args:
            key: which.
            sha256: what its content has to be; None accepts what was written last.

        Raises:
            MissingObjectError: there is none.
            DamagedObjectError: its content is not what was written, or not what is asked for.
        """
        ...

    def stat(self, key: str) -> ObjectInfo | None:
        """Looks at an object without reading it; None when there is none."""
        ...

    def delete(self, *keys: str) -> None:
        """Removes objects; what is not there is no error."""
        ...

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yields the objects whose keys begin so, in the order of the keys, however many there are."""
        ...

    def presigned_url(self, key: str, *, seconds: float) -> str:
        """Returns an address from which anybody can read the object for a time; it does not look for the object."""
        ...

    def expire_after(self, days: int) -> bool:
        """Lets the store remove what is in the folder of jobs after some days; 0 lets it keep all.

        Returns:
            False when the store cannot; `sweep` then has to be called now and then.
        """
        ...

    def check(self) -> None:
        """Makes sure that the store is there, and can be written to."""
        ...


def digest(content: bytes) -> str:
    """Returns the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def verified(key: str, content: bytes, stored: str | None, wanted: str | None) -> bytes:
    """Returns the content; raises `DamagedObjectError` when it is not what was written, or not what is wanted."""
    found = digest(content)
    if stored is None:
        raise DamagedObjectError(key, "it has no checksum; Smalti has not written it")
    if found != stored:
        raise DamagedObjectError(key, f"its {len(content)} bytes do not fit its checksum")
    if wanted is not None and found != wanted:
        raise DamagedObjectError(key, "it has other content than the message says")
    return content


def find(store: ObjectStore, *keys: str) -> tuple[ObjectRef, ...] | None:
    """Returns references to the objects when all are there, and None otherwise.

    It is how a stage finds out that its work was done before.
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
    """Removes old objects of jobs.

    Args:
        store: where.
        older_than: how old an object has to be, by its last write.
        intermediate: remove what is of no use once a job has ended (encoding, tokens, scores); otherwise everything.
        now: None is the clock's.

    Returns:
        How many were removed.
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
