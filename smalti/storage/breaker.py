"""An object store that refuses at once while the real one does not answer, so that its callers do not queue up."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from smalti.errors import StoreUnavailableError
from smalti.storage.keys import ObjectRef
from smalti.storage.store import ObjectInfo, ObjectStore

Result = TypeVar("Result")

FAILURES: Final = 3
"""Calls in a row without an answer after which further ones are refused."""
PROBE_SECONDS: Final = 1.0
"""Time between two calls that are let through to find out whether the store answers again."""


class BreakerStore:
    """Wraps an `ObjectStore`; thread-safe.

    A store that hangs takes its timeout for every call. After a few of those, one call at a time goes through, and the
    others are refused.
    """

    def __init__(self, store: ObjectStore, clock: Callable[[], float] = time.monotonic) -> None:
        """Wraps a store.

        Args:
            store: the store.
            clock: returns the time in seconds.
        """
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._probing = False
        self._probe_at = 0.0

    def put(self, key: str, content: bytes, *, content_type: str = "application/octet-stream") -> ObjectRef:  # noqa: D102
        return self._call(lambda: self._store.put(key, content, content_type=content_type))

    def create(self, key: str, content: bytes, *, content_type: str = "application/octet-stream") -> bool:  # noqa: D102
        return self._call(lambda: self._store.create(key, content, content_type=content_type))

    def get(self, key: str, *, sha256: str | None = None) -> bytes:  # noqa: D102
        return self._call(lambda: self._store.get(key, sha256=sha256))

    def stat(self, key: str) -> ObjectInfo | None:  # noqa: D102
        return self._call(lambda: self._store.stat(key))

    def delete(self, *keys: str) -> None:  # noqa: D102
        self._call(lambda: self._store.delete(*keys))

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:  # noqa: D102
        return self._store.objects(prefix)  # Many calls, between which the caller works.

    def presigned_url(self, key: str, *, seconds: float) -> str:  # noqa: D102
        return self._store.presigned_url(key, seconds=seconds)

    def expire_after(self, days: int) -> bool:  # noqa: D102
        return self._call(lambda: self._store.expire_after(days))

    def check(self) -> None:  # noqa: D102
        self._call(self._store.check)

    def _call(self, call: Callable[[], Result]) -> Result:
        self._enter()
        failed = False
        try:
            return call()
        except StoreUnavailableError as error:
            failed = error.transient
            raise
        finally:
            self._leave(failed)

    def _enter(self) -> None:
        with self._lock:
            if self._failures < FAILURES:
                return
            if self._probing or self._clock() < self._probe_at:
                raise StoreUnavailableError("the object store has not answered lately")
            self._probing = True

    def _leave(self, failed: bool) -> None:
        with self._lock:
            self._probing = False
            self._failures = self._failures + 1 if failed else 0
            self._probe_at = self._clock() + PROBE_SECONDS
