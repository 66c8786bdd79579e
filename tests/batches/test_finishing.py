"""From the results of shards to the manifest, the summary and the mark: every row once, the same bytes each time."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow.dataset
import pytest
from pyarrow import parquet

import smalti.batches.finishing
from smalti.batches import (
    BatchSummary,
    FolderPlace,
    PictureFormat,
    PromptResult,
    ResultPart,
    ShardRange,
    StorePlace,
    finish,
    read_manifest,
    read_tar,
)
from smalti.errors import DamagedObjectError, MissingObjectError
from smalti.storage import MemoryStore, digest
from tests.batches.drawn import MODEL, REVISION, describe, draw, draw_all, files_in, text_plan


def test_a_batch_in_a_folder(tmp_path: Path) -> None:
    plan = text_plan(10, bad=5)
    out = tmp_path / "out"
    place = FolderPlace(out)
    parts = draw_all(plan, place, tmp_path)
    summary = finish(place, describe(plan), parts)
    assert sorted(files_in(out)) == [
        "00000.tar",
        "00001.tar",
        "00002.tar",
        "_SUCCESS",
        "manifest/00000.parquet",
        "summary.json",
    ]
    assert (out / "_SUCCESS").read_bytes() == b""
    assert BatchSummary.parse("summary.json", (out / "summary.json").read_bytes()) == summary
    counts = summary.counts
    assert (counts.prompts, counts.drawn, counts.failed, counts.invalid, counts.pictures) == (10, 9, 1, 0, 18)
    assert summary.shards == ("00000.tar", "00001.tar", "00002.tar")
    assert summary.revisions == (REVISION,)
    rows = parquet.read_table(out / "manifest").to_pylist()
    assert [row["row"] for row in rows] == list(range(10))
    assert [row["state"] for row in rows] == ["drawn"] * 5 + ["failed"] + ["drawn"] * 4
    assert rows[5]["problem"] == "cannot be drawn"
    assert rows[5]["tar"] is None
    assert rows[5]["pictures"] == []
    with (out / "00001.tar").open("rb") as file:
        pictures = list(read_tar("00001.tar", file))
    assert [picture.key for picture in pictures] == [
        f"{row:09d}-{rank}" for row in (4, 6, 7) for rank in (0, 1)
    ]
    told = {picture["key"]: picture for row in rows for picture in row["pictures"]}
    prompts = {prompt.row: prompt for shard in plan.shards() for prompt in shard.prompts}
    for picture in pictures:
        record = picture.record
        prompt = prompts[record.row]
        assert picture.content == draw(prompt)[record.rank].content
        assert digest(picture.content) == record.sha256 == told[picture.key]["sha256"]
        assert told[picture.key]["size"] == len(picture.content)
        assert (record.prompt, record.seed, record.n, record.candidates) == (prompt.prompt, prompt.seed, 2, 4)
        assert (record.model, record.revision, record.sampling) == (MODEL, REVISION, prompt.sampling)
    assert counts.bytes == sum(picture["size"] for picture in told.values())


def test_equal_runs_give_equal_files_in_a_folder_and_in_a_store(tmp_path: Path) -> None:
    plan = text_plan(9, bad=2)
    first, second = tmp_path / "first", tmp_path / "second"
    store = MemoryStore()
    for place in (FolderPlace(first), FolderPlace(second), StorePlace(store, "batches/b/output/")):
        finish(place, describe(plan), draw_all(plan, place, tmp_path))
    assert files_in(first) == files_in(second)
    prefix = "batches/b/output/"
    assert {info.key.removeprefix(prefix): store.get(info.key) for info in store.objects(prefix)} == files_in(
        first
    )
    with pytest.raises(MissingObjectError):
        StorePlace(store, prefix).open("none")
    with pytest.raises(MissingObjectError):
        FolderPlace(first).open("none")


def test_halved_shards_change_the_tars_alone(tmp_path: Path) -> None:
    plan = text_plan(9)
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    finish(FolderPlace(whole), describe(plan), draw_all(plan, FolderPlace(whole), tmp_path))
    parts = draw_all(plan, FolderPlace(halved), tmp_path, halve=lambda part: part.number == 1)
    summary = finish(FolderPlace(halved), describe(plan), parts)
    assert summary.shards == ("00000.tar", "00001-0-2.tar", "00001-2-2.tar", "00002.tar")
    rows, others = (
        [row | {"tar": None} for row in parquet.read_table(folder / "manifest").to_pylist()]
        for folder in (whole, halved)
    )
    assert rows == others


def test_a_shard_without_pictures_has_no_tar(tmp_path: Path) -> None:
    plan = text_plan(3, shard_prompts=1, bad=1)
    out = tmp_path / "out"
    summary = finish(FolderPlace(out), describe(plan), draw_all(plan, FolderPlace(out), tmp_path))
    assert summary.shards == ("00000.tar", "00002.tar")
    assert not (out / "00001.tar").exists()


def test_a_manifest_has_files_of_so_many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smalti.batches.finishing, "SHARDS_IN_MANIFEST", 3)
    plan = text_plan(15, shard_prompts=2)
    out = tmp_path / "out"
    finish(FolderPlace(out), describe(plan), draw_all(plan, FolderPlace(out), tmp_path))
    found = [parquet.read_table(path)["row"].to_pylist() for path in sorted((out / "manifest").iterdir())]
    assert found == [list(range(6)), list(range(6, 12)), list(range(12, 15))]
    assert pyarrow.dataset.dataset(out / "manifest").to_table()["row"].to_pylist() == list(range(15))


def test_a_finish_that_was_interrupted_is_repeated(tmp_path: Path) -> None:
    plan = text_plan(9)
    whole, out = tmp_path / "whole", tmp_path / "out"
    finish(FolderPlace(whole), describe(plan), draw_all(plan, FolderPlace(whole), tmp_path))
    parts = draw_all(plan, FolderPlace(out), tmp_path)

    class Interrupted(FolderPlace):
        def __init__(self, after: int) -> None:
            super().__init__(out)
            self.left = after

        def put(self, name: str, content: bytes, content_type: str = "") -> None:
            self._count()
            super().put(name, content)

        def put_file(self, name: str, path: Path, content_type: str = "") -> None:
            self._count()
            super().put_file(name, path)

        def _count(self) -> None:
            self.left -= 1
            if self.left < 0:
                raise InterruptedError

    for after in range(3):
        with pytest.raises(InterruptedError):
            finish(Interrupted(after), describe(plan), parts)
        assert not (out / "_SUCCESS").exists()
    finish(FolderPlace(out), describe(plan), parts)
    assert files_in(out) == files_in(whole)


_LONG = ShardRange(number=1, count=5)
_FIRST = ShardRange(number=0, count=1, part=True)
Break = Callable[[list[ResultPart]], list[ResultPart]]


def _changed(
    parts: Sequence[ResultPart], number: int, change: Callable[[list[PromptResult]], object]
) -> list[ResultPart]:
    results = PromptResult.parse("", parts[number].load())
    change(results)
    changed = replace(parts[number], load=partial(bytes, PromptResult.to_bytes(results)))
    return [*parts[:number], changed, *parts[number + 1 :]]


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (lambda parts: parts[:-1], "row 8 is missing"),
        (lambda parts: parts[1:], "begins with row 4, but row 0 comes next"),
        (lambda parts: [parts[0], parts[0], *parts[1:]], "begins with row 0, but row 4 comes next"),
        (lambda parts: [parts[1], parts[0], parts[2]], "begins with row 4, but row 0 comes next"),
        (lambda parts: _changed(parts, 1, lambda rows: rows.pop()), "does not have the rows from 4 to 7"),
        (
            lambda parts: _changed(parts, 1, lambda rows: rows.append(rows[0])),
            "does not have the rows from 4 to 7",
        ),
        (lambda parts: _changed(parts, 1, lambda rows: rows.reverse()), "does not have the rows from 4 to 7"),
        (lambda parts: [replace(parts[0], range=parts[1].range), *parts[1:]], "begins with row 4"),
        (
            lambda parts: _changed(
                parts, 1, lambda rows: rows.__setitem__(0, rows[0].model_copy(update={"tar": "x"}))
            ),
            "has pictures in 'x', not in 00001.tar",
        ),
        (
            lambda parts: [replace(parts[0], load=lambda: b"{}"), *parts[1:]],
            "does not have the rows from 0 to 3",
        ),
        (lambda parts: [replace(parts[0], load=lambda: b""), *parts[1:]], "damaged"),
        (lambda parts: [parts[0], replace(parts[1], range=_LONG)], "has more prompts than its shard"),
        (
            lambda parts: _changed(
                parts, 1, lambda rows: rows.__setitem__(0, rows[0].model_copy(update={"state": "x"}))
            ),
            "has the states {'x'}",
        ),
        (lambda parts: [replace(parts[2], load=lambda: b'{"row": 0}', range=_FIRST)], "has a row without id"),
        (lambda parts: [replace(parts[0], load=lambda: b'{"row": "a"}'), *parts[1:]], "number"),
        (
            lambda parts: [replace(parts[0], load=lambda: b'{"row": 0, "x": 1}'), *parts[1:]],
            "unexpected field",
        ),
        (lambda parts: [replace(parts[0], load=lambda: b'{"row": 0'), *parts[1:]], "parse error"),
    ],
)
def test_a_row_that_is_missing_or_double_ends_it(tmp_path: Path, broken: Break, problem: str) -> None:
    plan = text_plan(9)
    out = tmp_path / "out"
    parts = draw_all(plan, FolderPlace(out), tmp_path)
    with pytest.raises(DamagedObjectError, match=problem):
        finish(FolderPlace(out), describe(plan), broken(parts))
    assert not (out / "_SUCCESS").exists()
    assert not (out / "summary.json").exists()


@pytest.mark.parametrize("state", ["cancelled", "expired"])
def test_a_batch_that_was_ended_has_a_manifest_of_what_is_drawn(tmp_path: Path, state: str) -> None:
    plan = text_plan(20)
    out = tmp_path / "out"
    parts = draw_all(plan, FolderPlace(out), tmp_path, halve=lambda part: part.number == 3)
    # Of the shards 0 to 4, 1 and the first half of 3 are drawn.
    summary = finish(FolderPlace(out), describe(plan), [parts[1], parts[3]], state)  # type: ignore[arg-type]
    assert summary.state == state
    assert summary.counts.prompts == 6
    assert json.loads((out / "summary.json").read_text())["shards"] == ["00001.tar", "00003-0-2.tar"]
    rows = parquet.read_table(out / "manifest")["row"].to_pylist()
    assert rows == [4, 5, 6, 7, 12, 13]
    assert not (out / "_SUCCESS").exists()


def test_manifests_are_read_back(tmp_path: Path) -> None:
    plan = text_plan(9, bad=3)
    out = tmp_path / "out"
    parts = draw_all(plan, FolderPlace(out), tmp_path, picture_format=PictureFormat.WEBP)
    finish(FolderPlace(out), describe(plan, PictureFormat.WEBP), parts)
    results = [result for part in parts for result in PromptResult.parse("", part.load())]
    with (out / "manifest" / "00000.parquet").open("rb") as file:
        assert list(read_manifest("00000.parquet", file)) == results
    with pytest.raises(DamagedObjectError, match=r"00000.tar"), (out / "00000.tar").open("rb") as file:
        list(read_manifest("00000.tar", file))
    with pytest.raises(DamagedObjectError, match=r"summary.json"), (out / "summary.json").open("rb") as file:
        list(read_tar("summary.json", file))
