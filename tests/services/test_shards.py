"""Shards through the stages: the same pictures as jobs, the same files as one process, and work that is done once."""

import threading
from pathlib import Path
from typing import Any

import pytest

from harness.queue import task
from harness.shards import LocalShard, batch_prompt, encode_shard_task
from harness.stages import RealStages
from smalti.batches import BatchKeys, PictureFormat, PromptResult, read_tar
from smalti.errors import MissingObjectError
from smalti.messages import (
    Chunk,
    EncodeShardTask,
    Event,
    FailureReason,
    Message,
    RankShardTask,
    ShardProgress,
    ShardRange,
    ShardReport,
    ShardTask,
    Stage,
    StageDone,
)
from smalti.parameters import Refinement, SecondPass
from smalti.pipeline import Pipeline
from smalti.queue import Delivery, GiveBackError, PermanentError
from smalti.registry.folder import ModelFolder
from smalti.service import failpoints
from smalti.storage import digest

PROMPTS = [
    batch_prompt(0, "a red cat", candidates=4),
    batch_prompt(1, "A RED cat!", vary=True, candidates=5, diversity=0.5, n=3),
    batch_prompt(2, "no", problem="a policy refuses it"),
    batch_prompt(3, "a big dog", given=(1, 2, 3)),
]
REFINED = [
    *PROMPTS,
    batch_prompt(4, "a big dog", second_pass=SecondPass(upscale=2, refine=Refinement(steps=2))),
]


@pytest.fixture(autouse=True)
def empty(stages: RealStages) -> None:
    """Nothing is left of other tests."""
    stages.store.entries.clear()


def report_of(messages: list[Message]) -> ShardReport:
    [report] = [each.shard for each in messages if isinstance(each, StageDone) and each.shard is not None]
    return report


def results(stages: RealStages, report: ShardReport) -> list[PromptResult]:
    return PromptResult.parse("", stages.store.get(report.part.key, sha256=report.part.sha256))


@pytest.mark.parametrize("prompts", [PROMPTS, REFINED], ids=["ranked", "refined"])
@pytest.mark.parametrize("picture_format", list(PictureFormat))
def test_output_is_that_of_one_process(
    stages: RealStages,
    worded: ModelFolder,
    one_process: Pipeline,
    tmp_path: Path,
    prompts: list[Any],
    picture_format: PictureFormat,
) -> None:
    first = encode_shard_task(stages.store, prompts, worded, picture_format=picture_format.value)
    messages = stages.messages(first)
    report = report_of(messages)
    local = LocalShard(one_process, prompts).draw(tmp_path / "00000.tar", picture_format)
    tar = (tmp_path / "00000.tar").read_bytes()
    assert report.tar is not None
    assert (report.tar.key, report.tar.sha256) == (BatchKeys("b1").tar(first.range), digest(tar))
    assert stages.store.get(report.tar.key) == tar
    assert results(stages, report) == list(local.results)
    drawn = len(prompts) - 1
    assert (report.drawn, report.failed, report.bytes) == (drawn, 1, len(tar))
    assert (report.pictures, report.candidates) == (
        local.pictures,
        sum(each.candidates for each in prompts) - 3,
    )
    # One message for each stage, and one event at its end.
    kinds = [type(each).__name__ for each in messages if isinstance(each, ShardTask)]
    names = ["Encode", "Generate", "Decode", "Rank", "Refine"][: len(kinds)]
    assert kinds == [f"{name}ShardTask" for name in names]
    assert len(kinds) == 4 + first.has_second_pass
    assert len(messages) == 2 * len(kinds)


def test_pictures_are_those_of_jobs(stages: RealStages, worded: ModelFolder) -> None:
    report = report_of(stages.messages(encode_shard_task(stages.store, PROMPTS, worded)))
    assert report.tar is not None
    with stages.store.open_object(report.tar.key) as file:
        pictures = list(read_tar("tar", file))
    assert len(pictures) == report.pictures == 2 + 3 + 2
    for prompt in PROMPTS:
        if prompt.problem is not None:
            continue
        stages.run(
            task(
                f"job-{prompt.row}",
                prompt.prompt,
                model=worded,
                seed=prompt.seed,
                vary=prompt.vary,
                given=prompt.given,
                chunks=(Chunk(chunk=0, candidates=tuple(range(prompt.candidates))),),
            )
        )
        objects = stages.objects(f"job-{prompt.row}")
        for picture in pictures:
            if picture.record.row == prompt.row:
                assert picture.content == objects[f"candidates/{picture.record.candidate}.png"]


def tasks_of(stages: RealStages, first: EncodeShardTask) -> dict[Stage, Any]:
    return {each.stage_queue: each for each in stages.messages(first) if isinstance(each, ShardTask)}


def test_work_that_is_done_is_skipped(stages: RealStages, worded: ModelFolder) -> None:
    first = encode_shard_task(stages.store, PROMPTS, worded)
    before = stages.messages(first)
    content = dict(stages.store.entries)
    again = stages.messages(first.next_attempt())
    assert report_of(again) == report_of(before)
    assert all(each.skipped for each in again if isinstance(each, StageDone))
    assert stages.store.entries == content


def test_output_stays_when_the_work_is_repeated_after_its_objects_are_deleted(
    stages: RealStages, worded: ModelFolder
) -> None:
    first = encode_shard_task(stages.store, PROMPTS, worded)
    rank = tasks_of(stages, first)[Stage.RANK]
    keys = rank.keys
    stages.store.delete(*[info.key for info in stages.store.objects(f"{keys.folder}shard/")])
    place = stages.store.stat(BatchKeys("b1").tar(first.range))
    [done] = stages.run(rank)
    assert isinstance(done, StageDone)
    assert done.skipped
    assert stages.store.stat(BatchKeys("b1").tar(first.range)) == place


def test_tar_in_its_place_is_that_of_the_record(stages: RealStages, worded: ModelFolder) -> None:
    """A worker that was killed before it could copy the tar, and one that has copied another one."""
    first = encode_shard_task(stages.store, PROMPTS, worded)
    tasks = tasks_of(stages, first)
    place = BatchKeys("b1").tar(first.range)
    tar = stages.store.get(place)
    stages.store.delete(place)
    stages.run(tasks[Stage.RANK])
    assert stages.store.get(place) == tar
    stages.store.put(place, b"of a worker whose results do not count")
    stages.run(tasks[Stage.RANK])
    assert stages.store.get(place) == tar


@pytest.mark.parametrize("stage", [Stage.GENERATE, Stage.DECODE, Stage.RANK])
def test_shard_starts_again_when_an_object_is_missing_or_damaged(
    stages: RealStages, worded: ModelFolder, stage: Stage
) -> None:
    first = encode_shard_task(stages.store, PROMPTS, worded)
    tasks = tasks_of(stages, first)
    report_before = stages.store.get(BatchKeys("b1").tar(first.range))
    keys = first.keys
    names = {
        Stage.GENERATE: keys.shard_encodings,
        Stage.DECODE: keys.shard_tokens,
        Stage.RANK: keys.shard_candidates,
    }
    stages.store.delete(*[info.key for info in stages.store.objects(f"{keys.folder}outputs/")])
    [key] = [key for key in stages.store.entries if key.startswith(names[stage].partition(".")[0])]
    content, info = stages.store.entries[key]
    stages.store.entries[key] = (content[:-1], info)
    messages = stages.messages(tasks[stage])
    assert [type(each) for each in messages[:2]] == [type(tasks[stage]), EncodeShardTask]
    assert messages[1].attempt == first.attempt + 1
    assert report_of(messages).drawn == 3
    assert stages.store.get(BatchKeys("b1").tar(first.range)) == report_before


def test_without_its_prompts_a_shard_is_given_up(stages: RealStages, worded: ModelFolder) -> None:
    first = encode_shard_task(stages.store, PROMPTS, worded)
    stages.store.delete(first.shard.key)
    with pytest.raises(PermanentError, match=first.shard.key) as caught:
        stages.run(first)
    assert caught.value.reason is FailureReason.INPUTS
    too_far = encode_shard_task(
        stages.store, PROMPTS, worded, range=ShardRange(number=0, start=2, count=3, part=True)
    )
    with pytest.raises(PermanentError, match="has 4 prompts"):
        stages.run(too_far)


def test_halves_of_a_shard_are_shards_of_their_own(stages: RealStages, worded: ModelFolder) -> None:
    whole = report_of(stages.messages(encode_shard_task(stages.store, PROMPTS, worded)))
    found: list[PromptResult] = []
    for half in ShardRange(number=0, count=len(PROMPTS)).halves():
        report = report_of(stages.messages(encode_shard_task(stages.store, PROMPTS, worded, range=half)))
        assert report.part.key.startswith(f"batches/b1/parts/{half.name}-")
        assert report.tar is not None
        assert report.tar.key == f"batches/b1/output/{half.name}.tar"
        found += results(stages, report)
    expected = results(stages, whole)
    assert [each.pictures for each in found] == [each.pictures for each in expected]
    assert [each.row for each in found] == [0, 1, 2, 3]


def test_shard_without_pictures_has_no_tar(stages: RealStages, worded: ModelFolder) -> None:
    first = encode_shard_task(stages.store, [PROMPTS[2]], worded)
    report = report_of(stages.messages(first))
    assert (report.tar, report.drawn, report.failed, report.bytes, report.candidates) == (None, 0, 1, 0, 0)
    assert stages.store.stat(BatchKeys("b1").tar(first.range)) is None
    assert [each.state for each in results(stages, report)] == ["failed"]


def test_cancelled_shard_ends(stages: RealStages, worded: ModelFolder) -> None:
    first = encode_shard_task(stages.store, PROMPTS, worded)
    stages.store.put(first.keys.cancelled, b"{}")
    for each in (first, tasks_of_another(stages, worded)):
        with pytest.raises(PermanentError) as caught:
            stages.run(each)
        assert caught.value.reason is FailureReason.CANCELLED


def tasks_of_another(stages: RealStages, worded: ModelFolder) -> RankShardTask:
    """Returns the task of the ranker for a shard that is cancelled later."""
    rank: RankShardTask = tasks_of(stages, encode_shard_task(stages.store, PROMPTS, worded, batch="b2"))[
        Stage.RANK
    ]
    stages.store.delete(*[info.key for info in stages.store.objects(f"{rank.keys.folder}outputs/")])
    stages.store.put(rank.keys.cancelled, b"{}")
    return rank


def test_worker_that_stops_gives_a_shard_back(stages: RealStages, worded: ModelFolder) -> None:
    first = encode_shard_task(stages.store, PROMPTS, worded)
    draining = threading.Event()
    draining.set()
    with pytest.raises(GiveBackError):
        list(stages.handlers[Stage.ENCODE](Delivery(first, draining)))
    assert not [key for key in stages.store.entries if key.startswith("jobs/")]


def test_progress_is_told_at_the_beginning_of_a_stage(stages: RealStages, worded: ModelFolder) -> None:
    stages.told.clear()
    stages.run(encode_shard_task(stages.store, PROMPTS, worded))
    told = [each for each in stages.told if isinstance(each, ShardProgress)]
    assert {each.stage for each in told} == {Stage.ENCODE, Stage.GENERATE, Stage.DECODE, Stage.RANK}
    assert all((each.done, each.total) == (0, 4 + 5 + 3) for each in told[:4])
    assert all(isinstance(each, Event) for each in stages.told)


def test_worker_that_is_too_slow_does_not_replace_the_tar(
    stages: RealStages, worded: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shard was done by another worker meanwhile, and its record is deleted."""
    first = encode_shard_task(stages.store, PROMPTS, worded)
    rank = tasks_of(stages, first)[Stage.RANK]
    place = BatchKeys("b1").tar(first.range)
    stages.store.delete(*[info.key for info in stages.store.objects(f"{rank.keys.folder}outputs/")])
    create = stages.store.create

    def meanwhile(key: str, content: bytes, **options: Any) -> bool:
        stages.store.put(rank.keys.cancelled, b"{}")
        stages.store.put(place, b"of the other worker")
        return create(key, content, **options)

    monkeypatch.setattr(stages.store, "create", meanwhile)
    with pytest.raises(PermanentError):
        stages.run(rank)
    assert stages.store.get(place) == b"of the other worker"


def test_missing_pictures_are_no_error_of_the_tar(stages: RealStages, worded: ModelFolder) -> None:
    """The record of a tar that has vanished does not count."""
    first = encode_shard_task(stages.store, PROMPTS, worded)
    rank = tasks_of(stages, first)[Stage.RANK]
    assert isinstance(rank, RankShardTask)
    place = BatchKeys("b1").tar(first.range)
    tar = stages.store.get(place)
    stages.store.delete(place, *[key for key in stages.store.entries if "/shard/output-" in key])
    with pytest.raises(MissingObjectError):
        stages.store.get(place)
    [done] = stages.run(rank)
    assert isinstance(done, StageDone)
    assert not done.skipped
    assert stages.store.get(place) == tar


@pytest.mark.parametrize("stage", ["encode", "decode", "rank", "refine"])
def test_prompt_over_which_an_engine_fails_is_told_as_failed(
    stages: RealStages, worded: ModelFolder, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setenv("SMALTI_FAILPOINTS", f"{stage}.shard-engine-step=raise?prompt=big dog")
    failpoints.arm()
    try:
        prompts = [REFINED[0], REFINED[4]]
        report = report_of(stages.messages(encode_shard_task(stages.store, prompts, worded)))
    finally:
        monkeypatch.delenv("SMALTI_FAILPOINTS")
        failpoints.arm()
    drawn, failed = results(stages, report)
    assert (drawn.state, len(drawn.pictures)) == ("drawn", 2)
    assert (failed.state, failed.pictures) == ("failed", ())
    assert failed.problem == "the engine fails over this request, and over no other"
