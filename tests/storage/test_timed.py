"""The timed object store."""

from pathlib import Path

import pytest

from harness.telemetry import sample_reader
from smalti.errors import DamagedObjectError, MissingObjectError, StoreUnavailableError
from smalti.storage import JobKeys, LocalStore
from smalti.storage.timed import TimedStore
from smalti.telemetry import Metrics


def test_calls_of_the_store_are_timed_by_outcome(tmp_path: Path) -> None:
    metrics = Metrics("ranker")
    store = TimedStore(LocalStore(tmp_path / "store"), metrics)
    key = JobKeys("j1").scores(0)
    store.check()
    ref = store.put(key, b"content", content_type="text/plain")
    assert store.get(key, sha256=ref.sha256) == b"content"
    assert (store.stat(key), store.stat("jobs/none")) != (None, None)
    assert [info.key for info in store.objects("jobs/")] == [key]
    assert store.presigned_url(key, seconds=1).startswith("file:///")
    assert store.expire_after(1) is False
    with pytest.raises(DamagedObjectError):
        store.get(key, sha256="0" * 64)
    store.delete(key)
    with pytest.raises(MissingObjectError):
        store.get(key)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailableError):
        TimedStore(LocalStore(tmp_path / "file"), metrics).put(key, b"")
    value = sample_reader(metrics)
    for op, outcome, count in (
        *(("put", "done", 1), ("get", "done", 1), ("get", "damaged", 1), ("get", "missing", 1)),
        *(("stat", "done", 2), ("delete", "done", 1), ("put", "unavailable", 1)),
    ):
        assert value("object_store_seconds_count", op=op, outcome=outcome) == count, (op, outcome)
