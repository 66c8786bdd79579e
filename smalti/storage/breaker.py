"""An object store that refuses at once while the real one does not answer, so that its callers do not queue up."""

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from smalti.errors import StoreUnavailableError
from smalti.storage.store import ObjectStore
from smalti.storage.wrapped import WrappedStore

Result = TypeVar("Result")

FAILURES: Final = 3
"""Calls in a row without an answer after which further ones are refused."""
PROBE_SECONDS: Final = 1.0
"""Time between two calls that are let through to find out whether the store answers again."""


class BreakerStore(WrappedStore):
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
        super().__init__(store)
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._probing = False
        self._probe_at = 0.0

    def _call(self, op: str, key: str, call: Callable[[], Result]) -> Result:
        is_probe = self._enter()
        failed = False
        try:
            return call()
        except StoreUnavailableError as error:
            failed = error.transient
            raise
        finally:
            self._leave(failed, is_probe=is_probe)

    def _enter(self) -> bool:
        """Returns whether the call finds out whether the store answers again."""
        with self._lock:
            if self._failures < FAILURES:
                return False
            if self._probing or self._clock() < self._probe_at:
                raise StoreUnavailableError("the object store has not answered lately")
            self._probing = True
            return True

    def _leave(self, failed: bool, *, is_probe: bool) -> None:
        with self._lock:
            # Calls from before the refusals end while another one probes.
            if is_probe:
                self._probing = False
            self._failures = self._failures + 1 if failed else 0
            self._probe_at = self._clock() + PROBE_SECONDS
