"""Whether a store can be written, as health checks ask it."""

import threading
from pathlib import Path

from harness.grpc_server import asynchronous
from smalti.storage import LocalStore, MemoryStore, StoreCheck
from smalti.storage.checking import MAX_AGE_SECONDS


class CountingStore(MemoryStore):
    """Counts its checks, each of which waits for leave."""

    def __init__(self) -> None:
        super().__init__()
        self.checks = 0
        self.leave = threading.Event()

    def check(self) -> None:
        self.checks += 1
        assert self.leave.wait(30)


@asynchronous
async def test_check_follows_the_store(tmp_path: Path) -> None:
    folder, now = tmp_path / "store", 0.0
    check = StoreCheck(LocalStore(folder), clock=lambda: now)
    assert await check.succeeds()
    (folder / ".writable").unlink()
    folder.rmdir()
    folder.write_text("no folder")
    assert await check.succeeds()  # Asked a moment ago.
    now += MAX_AGE_SECONDS + 1
    assert not await check.succeeds()
    folder.unlink()
    now += MAX_AGE_SECONDS + 1
    assert await check.succeeds()


@asynchronous
async def test_store_that_hangs_is_asked_once() -> None:
    store = CountingStore()
    check = StoreCheck(store, wait=0.05)
    assert not await check.succeeds()
    assert not await check.succeeds()
    assert store.checks == 1
    store.leave.set()
    patient = StoreCheck(store)
    assert await patient.succeeds()
