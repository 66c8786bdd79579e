"""Places below an address of S3: what stays after a failure."""

import errno

import pytest

from smalti.batches import WORK
from smalti.cli.batches.places import Keeper, StoreRun, open_place
from smalti.errors import InvalidInputError, SmaltiError
from smalti.storage import MemoryStore


@pytest.fixture
def place() -> StoreRun:
    return StoreRun(MemoryStore(), "run/", "s3://bucket/run")


def test_failure_before_anything_is_kept_leaves_only_what_was_there(place: StoreRun) -> None:
    place.put(f"{WORK}run.json", b"of an earlier run")
    for is_kept, left in ((False, ["run.json"]), (True, ["parts/00000.jsonl", "run.json"])):
        with pytest.raises(KeyError), place.opened({}) as keeper:
            _fail(place, keeper if is_kept else None)
        assert list(place.names()) == [WORK + name for name in left]


def _fail(place: StoreRun, keeper: Keeper | None) -> None:
    if keeper is not None:
        keeper.keep()
    place.put(f"{WORK}parts/00000.jsonl", b"")
    raise KeyError


@pytest.mark.parametrize("out", ["http://host/run", "gs://bucket/run", "file:///run"])
def test_address_of_another_kind_is_refused(out: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^out: must be a folder, or s3://BUCKET/PREFIX"):
        open_place(out)


def test_full_disk_of_this_machine_is_told_in_one_line(place: StoreRun) -> None:
    with (
        pytest.raises(SmaltiError, match="s3://bucket/run cannot be written: No space left"),
        place.opened({}),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_work_is_removed_with_its_record_last(place: StoreRun) -> None:
    with place.opened({}):
        for name in ("parts/00000.jsonl", "run.json", "begun/00001.json"):
            place.put(f"{WORK}{name}", b"")
        place.put("00000.tar", b"")
        place.remove_work(f"{WORK}run.json")
    assert list(place.names()) == ["00000.tar"]
