"""Who writes below an address of S3."""

import json
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

import pytest

from harness.waiting import wait_until
from smalti.cli.batches.leases import LEASES, STALE_SECONDS, StoreLease
from smalti.errors import InvalidInputError, SmaltiError
from smalti.storage import MemoryStore, ObjectInfo


class AgedStore(MemoryStore):
    """A store in which leases were written earlier than they were."""

    age = timedelta()

    def stat(self, key: str) -> ObjectInfo | None:
        info = super().stat(key)
        return info and replace(info, modified=info.modified - self.age) if LEASES in key else info


def other(store: MemoryStore, host: str, process: int) -> None:
    """Writes the lease of another run."""
    holder = {"host": host, "process": process, "since": "2026-01-01"}
    store.put(f"run/{LEASES}000004", json.dumps(holder).encode())


def is_lost(lease: StoreLease) -> bool:
    try:
        lease.check()
    except SmaltiError as error:
        return "was taken over by another run" in str(error)
    return False


def keys(store: MemoryStore) -> list[str]:
    return [info.key for info in store.objects("run/")]


def test_second_run_is_refused_and_the_lease_ends_with_the_first() -> None:
    store = MemoryStore()
    with (
        StoreLease(store, "run/", "s3://bucket/run").held(),
        pytest.raises(InvalidInputError, match="s3://bucket/run is being written by process"),
        StoreLease(store, "run/", "s3://bucket/run").held(),
    ):
        pass
    assert keys(store) == []
    with StoreLease(store, "run/", "s3://bucket/run").held():
        assert keys(store) == [f"run/{LEASES}000000"]


def test_run_on_another_machine_is_waited_for_until_it_shows_no_sign_of_life() -> None:
    store = AgedStore()
    other(store, "elsewhere", 1)
    lease = StoreLease(store, "run/", "s3://bucket/run")
    with pytest.raises(InvalidInputError, match=r"process 1 on elsewhere .* or, if it was killed, \d+ s"):
        lease.held().__enter__()
    store.age = timedelta(seconds=STALE_SECONDS + 1)
    with lease.held():
        assert keys(store) == [f"run/{LEASES}000005"]


def test_run_of_this_machine_that_has_ended_is_not_waited_for() -> None:
    store = MemoryStore()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    other(store, socket.gethostname(), ended.pid)
    with StoreLease(store, "run/", "s3://bucket/run").held():
        pass


def test_run_whose_lease_was_taken_writes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    monkeypatch.setattr("smalti.cli.batches.leases.RENEWED_SECONDS", 0.01)
    lease = StoreLease(store, "run/", "s3://bucket/run")
    with lease.held():
        lease.check()
        other(store, "elsewhere", 1)
        wait_until(lambda: is_lost(lease))
    assert keys(store) == [f"run/{LEASES}000004"]
