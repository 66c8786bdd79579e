"""A store that does not answer is asked by one caller at a time."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.waiting import WAIT
from smalti.errors import MissingObjectError, StoreUnavailableError
from smalti.storage import BreakerStore, MemoryStore
from smalti.storage.breaker import FAILURES, PROBE_SECONDS


class HangingStore(MemoryStore):
    """A store whose reads hang until they are let go, and then fail."""

    def __init__(self) -> None:
        """Hangs from the start."""
        super().__init__()
        self.well = False
        self.calls = 0
        self.began = threading.Semaphore(0)
        self.go_on = threading.Event()

    def get(self, key: str, *, sha256: str | None = None) -> bytes:
        """Reads, if all is well."""
        self.calls += 1
        go_on = self.go_on
        self.began.release()
        if self.well:
            return super().get(key, sha256=sha256)
        assert go_on.wait(WAIT)
        raise StoreUnavailableError("the store does not answer")


def test_after_some_failures_one_call_at_a_time_asks_the_store() -> None:
    now = [0.0]
    store = HangingStore()
    broken = BreakerStore(store, clock=lambda: now[0])
    store.go_on.set()
    for _ in range(FAILURES):
        with pytest.raises(StoreUnavailableError, match="does not answer"):
            broken.get("a")
    for _ in range(100):
        with pytest.raises(StoreUnavailableError, match="has not answered lately"):
            broken.get("a")
    assert store.calls == FAILURES
    # One call finds out whether it answers again; the others are refused meanwhile.
    store.go_on.clear()
    now[0] += PROBE_SECONDS
    with ThreadPoolExecutor(1) as threads:
        for _ in range(FAILURES):
            assert store.began.acquire(timeout=WAIT)
        probe = threads.submit(broken.get, "a")
        assert store.began.acquire(timeout=WAIT)
        with pytest.raises(StoreUnavailableError, match="has not answered lately"):
            broken.get("a")
        store.go_on.set()
        with pytest.raises(StoreUnavailableError, match="does not answer"):
            probe.result(WAIT)
    assert store.calls == FAILURES + 1
    store.well = True
    with pytest.raises(StoreUnavailableError, match="has not answered lately"):
        broken.get("a")
    now[0] += PROBE_SECONDS
    for _ in range(FAILURES + 1):  # A missing object is an answer.
        with pytest.raises(MissingObjectError):
            broken.get("a")


def test_call_from_before_the_refusals_does_not_let_a_second_one_through() -> None:
    now = [0.0]
    store = HangingStore()
    broken = BreakerStore(store, clock=lambda: now[0])
    with ThreadPoolExecutor(2) as threads:
        early = threads.submit(broken.get, "early")
        assert store.began.acquire(timeout=WAIT)
        first, store.go_on = store.go_on, threading.Event()
        failing = [threads.submit(lambda: store_fails(broken)) for _ in range(FAILURES)]
        store.go_on.set()
        for each in failing:
            each.result(WAIT)
        store.go_on = threading.Event()
        now[0] += PROBE_SECONDS
        for _ in range(FAILURES):
            assert store.began.acquire(timeout=WAIT)
        probe = threads.submit(broken.get, "probe")
        assert store.began.acquire(timeout=WAIT)
        first.set()
        with pytest.raises(StoreUnavailableError, match="does not answer"):
            early.result(WAIT)
        now[0] += PROBE_SECONDS
        with pytest.raises(StoreUnavailableError, match="has not answered lately"):
            broken.get("another")
        store.go_on.set()
        with pytest.raises(StoreUnavailableError, match="does not answer"):
            probe.result(WAIT)


def store_fails(store: BreakerStore) -> None:
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        store.get("a")
