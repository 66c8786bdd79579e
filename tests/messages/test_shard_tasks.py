"""The tasks of shards: which follows from which, and what each may name."""

import json
from typing import Any

import pytest

from harness.paths import SAMPLES
from smalti.errors import ExpiredMessageError, MalformedMessageError
from smalti.messages import (
    MAX_CLOCK_SKEW_SECONDS,
    EncodeShardTask,
    FailureReason,
    RankShardTask,
    RefineShardTask,
    ShardRange,
    ShardReport,
    ShardTask,
    Stage,
    StageDone,
    Trace,
    parse,
    shard_job,
    shard_key,
)
from smalti.storage import ObjectRef, content_key

SHA = "0123456789abcdef" * 4
LATER = 4_000_000_000.0
KEY = "a1b2c3d4e5f6"


def encode_task(**changes: Any) -> EncodeShardTask:
    part = ShardRange(number=7, start=128, count=64, part=True)
    fields: dict[str, Any] = {
        "job": shard_job("b1", part),
        "attempt": 2,
        "lease": 3,
        "expires": LATER,
        "trace": Trace(traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01"),
        "model": "tiny",
        "revision": "sha256:12",
        "tenant": "default",
        "routes": {"generate": KEY},
        "batch": "b1",
        "range": part,
        "shard": ObjectRef(key=shard_key("b1", 7), sha256=SHA),
        "picture_format": "webp",
        "slots": 8,
        "has_second_pass": True,
    }
    return EncodeShardTask(**{**fields, **changes})


def ref(name: str) -> ObjectRef:
    return ObjectRef(key=content_key(name, SHA), sha256=SHA)


def all_tasks(encode: EncodeShardTask) -> list[ShardTask]:
    keys = encode.keys
    generate = encode.next(ref(keys.shard_encodings))
    decode = generate.next(ref(keys.shard_tokens))
    rank = decode.next(ref(keys.shard_candidates))
    return [encode, generate, decode, rank, rank.next(ref(keys.shard_chosen))]


def report(**changes: Any) -> ShardReport:
    fields: dict[str, Any] = {
        "part": ref("batches/b1/parts/00007-128-64.jsonl"),
        "tar": ObjectRef(key="batches/b1/output/00007-128-64.tar", sha256=SHA),
        "drawn": 63,
        "failed": 1,
        "candidates": 1008,
        "pictures": 567,
        "bytes": 2**33,
    }
    return ShardReport(**{**fields, **changes})


def one_of_each() -> list[Any]:
    tasks = all_tasks(encode_task())
    done = tasks[-1].done(seconds=0.5, shard=report())
    return [*tasks, tasks[1].progress(17, 1024), done]


def test_messages_survive_serialization() -> None:
    for message in one_of_each():
        assert parse(message.to_json()) == message


@pytest.mark.parametrize("message", one_of_each(), ids=lambda message: type(message).__name__)
def test_there_is_a_sample_of_every_kind(message: Any) -> None:
    name = "3.StageDone-shard.json" if isinstance(message, StageDone) else f"3.{type(message).__name__}.json"
    text = (SAMPLES / "messages" / name).read_text(encoding="utf-8")
    assert json.loads(text) == json.loads(message.to_json())
    assert parse(text, now=0) == message


def test_every_stage_passes_on_all_fields() -> None:
    encode = parse(json.dumps({**json.loads(encode_task().to_json()), "later": {"deep": [1]}}))
    assert isinstance(encode, EncodeShardTask)
    tasks = all_tasks(encode)
    stages = [Stage.ENCODE, Stage.GENERATE, Stage.DECODE, Stage.RANK, Stage.REFINE]
    assert [task.stage_queue for task in tasks] == stages
    assert [task.queue for task in tasks] == [
        "smalti.encode.batch",
        f"smalti.generate.{KEY}.batch",
        "smalti.decode.batch",
        "smalti.rank.batch",
        "smalti.refine.batch",
    ]
    for task in (*tasks, *(task.from_the_start() for task in tasks)):
        for name in (name for name in ShardTask.model_fields if name not in ("kind", "attempt")):
            assert getattr(task, name) == getattr(encode, name), name
        assert json.loads(task.to_json())["later"] == {"deep": [1]}
    assert [task.attempt for task in tasks] == [2] * 5
    again = tasks[3].from_the_start()
    assert (type(again), again.attempt) == (EncodeShardTask, 3)
    works = [task.work_key for task in tasks]
    assert len(set(works)) == len(works)
    assert [task.next_attempt().work_key for task in tasks] == works


def test_a_shard_is_a_job_of_its_own() -> None:
    task = encode_task()
    assert task.job == "b1-00007-128-64"
    assert task.keys.shard_tokens == "jobs/b1-00007-128-64/shard/tokens.safetensors"
    failed = task.failed(FailureReason.POISON, "workers crashed")
    assert (failed.job, failed.stage, failed.chunk, failed.lease) == (task.job, Stage.ENCODE, None, 3)
    with pytest.raises(ExpiredMessageError):
        parse(task.to_json(), now=LATER + MAX_CLOCK_SKEW_SECONDS)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"version": 2}, "version"),
        ({"priority": "interactive"}, "the priority of batches"),
        ({"job": "b1-00007"}, "the job must be b1-00007-128-64"),
        ({"batch": "b2"}, "the job must be b2-"),
        ({"shard": {"key": "batches/b1/shards/00008.jsonl", "sha256": SHA}}, "the shard must be"),
        ({"shard": {"key": "batches/b2/shards/00007.jsonl", "sha256": SHA}}, "the shard must be"),
        ({"range": {"number": 7, "start": 1, "count": 2}}, "begins with the first"),
        ({"range": {"number": 7, "count": 1025}}, "count"),
        ({"picture_format": "gif"}, "picture_format"),
        ({"slots": 0}, "slots"),
        ({"tokens": {"key": f"jobs/b1-00007-128-64/tokens/0-{SHA[:12]}.x", "sha256": SHA}}, "tokens"),
        ({"candidates": {"key": "jobs/b1-00007-128-64/shard/candidates.tar", "sha256": SHA}}, "candidates"),
    ],
)
def test_malformed_task_is_refused(changes: dict[str, Any], problem: str) -> None:
    rank = all_tasks(encode_task())[3]
    assert isinstance(rank, RankShardTask)
    with pytest.raises(MalformedMessageError, match=problem):
        parse(json.dumps({**json.loads(rank.to_json()), **changes}))


def test_a_report_names_objects_of_its_batch() -> None:
    refine = all_tasks(encode_task())[-1]
    assert isinstance(refine, RefineShardTask)
    for wrong in (
        {"part": ref("batches/b2/parts/00007.jsonl")},
        {"tar": ref("jobs/b1-00007-128-64/shard/output.tar")},
        {"tar": ref("batches/b/output/00007.tar")},
    ):
        text = json.loads(refine.done(shard=report()).to_json())
        text["shard"].update({name: each.model_dump() for name, each in wrong.items()})
        with pytest.raises(MalformedMessageError, match="not in the folder of the batch"):
            parse(json.dumps(text))
    assert parse(refine.done(shard=report(tar=None)).to_json()) == refine.done(shard=report(tar=None))
