"""Keeping others from an address of S3, which has no locks: objects with numbers, of which each is made once."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from smalti.batches import WORK
from smalti.errors import InvalidInputError, MissingObjectError, SmaltiError, StorageError
from smalti.storage import ObjectStore

LEASES: Final = f"{WORK}leases/"
CLOCK: Final = f"{WORK}clock"
RENEWED_SECONDS: Final = 20.0
STALE_SECONDS: Final = 90.0
"""A run that has shown no sign of life for so long was killed."""


class StoreLease:
    """Who writes below a prefix: the process that made the object with the highest number, as long as it renews it."""

    def __init__(self, store: ObjectStore, prefix: str, label: str) -> None:
        """Takes the store, the prefix, which is empty or ends with "/", and the address for errors."""
        self._store = store
        self._prefix = prefix
        self._label = label
        self._key = ""
        self._lost = threading.Event()

    def check(self) -> None:
        """Raises `SmaltiError` if another run has taken over, since this one was without a network for too long."""
        if self._lost.is_set():
            raise SmaltiError(f"{self._label} was taken over by another run; nothing more is written")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the lease while the block runs.

        Raises:
            InvalidInputError: another run holds it; names that run.
        """
        self._take()
        ended = threading.Event()
        thread = threading.Thread(target=self._renew, args=(ended,), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            # Without an answer of the store, the lease is stale after a while.
            with suppress(StorageError):
                self._store.delete(self._key)

    def _take(self) -> None:
        keys = self._keys()
        number = 0
        if keys:
            self._check_stale(keys[-1])
            number = int(keys[-1].rpartition("/")[2]) + 1
        self._key = f"{self._prefix}{LEASES}{number:06d}"
        if not self._store.create(self._key, json.dumps(_me()).encode()):
            raise InvalidInputError("out", f"{self._label} is being written by a run that began just now")
        self._store.delete(*keys)

    def _check_stale(self, key: str) -> None:
        """Raises `InvalidInputError` unless the holder of a lease has ended."""
        try:
            holder: dict[str, Any] = json.loads(self._store.get(key))
        except (MissingObjectError, ValueError):
            return
        if holder.get("host") == socket.gethostname() and not _is_alive(int(holder.get("process", 0))):
            return
        age = self._age(key)
        if age is None or age >= timedelta(seconds=STALE_SECONDS):
            return
        left = STALE_SECONDS - age.total_seconds()
        raise InvalidInputError(
            "out",
            f"{self._label} is being written by process {holder.get('process')} on {holder.get('host')} since "
            f"{holder.get('since')}; wait for its end, or, if it was killed, {left:.0f} s",
        )

    def _age(self, key: str) -> timedelta | None:
        """Returns how long ago a lease was renewed, by the clock of the store; None if it is gone."""
        self._store.put(self._prefix + CLOCK, b"")
        now, renewed = self._store.stat(self._prefix + CLOCK), self._store.stat(key)
        self._store.delete(self._prefix + CLOCK)
        return now.modified - renewed.modified if now and renewed else None

    def _renew(self, ended: threading.Event) -> None:
        while not ended.wait(RENEWED_SECONDS):
            try:
                if self._keys()[-1:] != [self._key]:
                    self._lost.set()
                    return
                self._store.put(self._key, json.dumps(_me()).encode())
            except StorageError:
                continue  # The run itself fails if the store stays away.

    def _keys(self) -> list[str]:
        return [info.key for info in self._store.objects(self._prefix + LEASES)]


def _me() -> dict[str, Any]:
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(sep=" ", timespec="seconds"),
    }


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OverflowError, PermissionError):
        return True
    return True
