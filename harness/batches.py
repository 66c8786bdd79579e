"""Batches of a gateway for tests, and fake stages for their shards, which compute nothing."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from harness.fleet import card_of, say_hello
from harness.gateway import GatewayHarness
from smalti.batches import (
    BatchDefaults,
    BatchKeys,
    BatchLayout,
    BatchPrompt,
    DrawnPicture,
    InputFormat,
    PictureFormat,
    PromptResult,
    ShardFile,
    TarWriter,
)
from smalti.messages import EncodeShardTask, ShardProgress, ShardReport, Stage, StageDone
from smalti.parameters import SamplingParameters
from smalti.services.gateway.batches import BatchParameters, BatchSnapshot, BatchSource, BatchSpec
from smalti.storage import ObjectRef, ObjectStore, content_key, digest


def batch_spec(gateway: GatewayHarness, key: str = "inputs/prompts.txt", **changes: Any) -> BatchSpec:
    """Returns a batch of shards of 4 prompts, each with 2 pictures of 3 candidates."""
    source = {
        name: changes.pop(name)
        for name in ("format", "columns", "ignore_columns", "skip_invalid", "sha256")
        if name in changes
    }
    defaults = changes.pop("defaults", {})
    parameters = BatchParameters(
        input=BatchSource(
            object_key=key, name=key.rpartition("/")[2], **{"format": InputFormat.TEXT, **source}
        ),
        defaults=BatchDefaults(
            **{
                "n": 2,
                "candidates": 3,
                "default_n": 2,
                "default_candidates": 3,
                "sampling": SamplingParameters(),
                **defaults,
            }
        ),
        picture_format=PictureFormat.PNG,
        shard_prompts=changes.pop("shard_prompts", 4),
    )
    fields: dict[str, Any] = {"time_limit": 100_000.0, "retention": 5000.0, **changes}
    return BatchSpec(card=card_of(gateway), parameters=parameters, **fields)


class FakeShards:
    """Does the work of all stages on shards of a store."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.fails: Callable[[BatchPrompt], str | None] = lambda prompt: None
        """Returns why a prompt cannot be drawn; None if it can."""

    def prompts(self, task: EncodeShardTask) -> list[BatchPrompt]:
        """Returns the prompts of a message."""
        prompts = ShardFile.parse(task.shard.key, self.store.get(task.shard.key, sha256=task.shard.sha256))
        return task.range.of(prompts)

    def reached(self, task: EncodeShardTask, stage: Stage) -> StageDone:
        """Returns the event of a stage before the last."""
        return StageDone(**_event(task, stage), objects=())

    def progress(self, task: EncodeShardTask, done: int, stage: Stage = Stage.GENERATE) -> ShardProgress:
        """Returns the event of a stage that works on a shard."""
        total = sum(prompt.candidates for prompt in self.prompts(task))
        return ShardProgress(**_event(task, stage), done=done, total=total)

    def draw(self, task: EncodeShardTask) -> StageDone:
        """Writes the pictures and the results of a shard; returns the event of the last stage."""
        keys, layout = BatchKeys(task.batch), BatchLayout()
        results: list[PromptResult] = []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "shard.tar"
            tar_format = PictureFormat(task.picture_format)
            with TarWriter(path, tar_format, model=task.model, revision=task.revision) as tar:
                for prompt in self.prompts(task):
                    problem = prompt.problem or self.fails(prompt)
                    if problem is not None:
                        results.append(
                            PromptResult.not_drawn(prompt, problem, model=task.model, revision=task.revision)
                        )
                        continue
                    records = tar.add(prompt, [_picture(prompt, rank) for rank in range(prompt.n)])
                    results.append(
                        PromptResult.of_pictures(
                            prompt,
                            records,
                            tar=layout.tar(task.range),
                            model=task.model,
                            revision=task.revision,
                        )
                    )
                count = tar.pictures
            content = path.read_bytes()
        written = self.store.put(keys.tar(task.range), content) if count else None
        part = PromptResult.to_bytes(results)
        ref = self.store.put(content_key(keys.part(task.range), digest(part)), part)
        drawn = [
            prompt for prompt, result in zip(self.prompts(task), results, strict=True) if result.pictures
        ]
        return StageDone(
            **_event(task, Stage.RANK),
            objects=(),
            shard=ShardReport(
                part=ref,
                tar=ObjectRef(key=written.key, sha256=written.sha256) if written else None,
                drawn=len(drawn),
                failed=len(results) - len(drawn),
                candidates=sum(prompt.candidates for prompt in drawn),
                pictures=count,
                bytes=len(content) if count else 0,
            ),
        )


class BatchHarness:
    """Batches of a gateway whose threads do not run; its model has workers."""

    def __init__(self, gateway: GatewayHarness, *, generators: int = 1, slots: int = 8) -> None:
        """Lets workers of the model say hello."""
        self.gateway = gateway
        self.room = gateway.gateway.batches
        self.store = gateway.store
        self.stages = FakeShards(gateway.store)
        self.generators, self.slots = generators, slots
        self.greet()

    def greet(self) -> None:
        """Lets all workers say hello."""
        card = card_of(self.gateway)
        say_hello(self.gateway, card, slots=self.slots)
        for number in range(1, self.generators):
            say_hello(self.gateway, card, stages=[Stage.GENERATE], worker=str(number), slots=self.slots)

    def input(self, prompts: Sequence[str], key: str = "inputs/prompts.txt") -> str:
        """Writes an input of lines; returns its key."""
        self.store.put(key, "".join(f"{prompt}\n" for prompt in prompts).encode())
        return key

    def create(self, prompts: int | Sequence[str] = 10, **changes: Any) -> str:
        """Accepts a batch; returns its id."""
        texts = [f"prompt {number}" for number in range(prompts)] if isinstance(prompts, int) else prompts
        self.gateway.clock.advance(1e-6)
        key = self.input(texts, changes.pop("key", "inputs/prompts.txt"))
        return self.room.repository.create(batch_spec(self.gateway, key, **changes)).batch.id

    def planned(self, prompts: int | Sequence[str] = 10, **changes: Any) -> str:
        """Accepts and plans a batch; returns its id."""
        batch = self.create(prompts, **changes)
        self.room.plan()
        return batch

    def get(self, batch: str) -> BatchSnapshot:
        """Returns a batch after all collected progress is stored."""
        self.room.progress.store()
        return self.room.repository.get(batch)

    def state(self, batch: str) -> str:
        """Returns the state of a batch."""
        return self.get(batch).batch.state.value

    def send(self) -> list[EncodeShardTask]:
        """Lets the gateway send what is due; returns the messages."""
        self.room.send()
        return [each for each in self.gateway.publisher.take() if isinstance(each, EncodeShardTask)]

    def handle(self, *events: Any) -> None:
        """Lets the gateway handle events of the stages."""
        self.gateway.handle(*events)

    def run(self) -> None:
        """Draws all shards, and finishes the batches."""
        while tasks := self.send():
            for task in tasks:
                self.handle(self.stages.draw(task))
        self.room.finish()

    def pass_time(self, seconds: float) -> None:
        """Advances the clock, and does what is due then; the workers are still there."""
        self.gateway.clock.advance(seconds)
        self.greet()
        self.room.clean()

    def rows(self, batch: str) -> list[Mapping[str, Any]]:
        """Returns the rows of a batch's manifest."""
        prefix = BatchKeys(batch).prefix
        rows: list[Mapping[str, Any]] = []
        for info in self.store.objects(f"{prefix}manifest/"):
            with self.store.open_object(info.key) as file:
                rows += pq.read_table(file).to_pylist()
        return rows

    def files(self, batch: str) -> dict[str, str]:
        """Returns the SHA-256 of the files of a batch's output, by their names."""
        prefix = BatchKeys(batch).prefix
        return {
            info.key.removeprefix(prefix): digest(self.store.get(info.key))
            for info in self.store.objects(prefix)
        }

    def keys(self, prefix: str) -> list[str]:
        """Returns the keys of all objects with a prefix."""
        return [info.key for info in self.store.objects(prefix)]


def _event(task: EncodeShardTask, stage: Stage) -> dict[str, Any]:
    return {
        "version": task.version,
        "job": task.job,
        "lease": task.lease,
        "expires": task.expires,
        "priority": task.priority,
        "stage": stage,
    }


def _picture(prompt: BatchPrompt, rank: int) -> DrawnPicture:
    content = f"{prompt.prompt} {prompt.seed} {rank}".encode()
    return DrawnPicture(content=content, candidate=rank, score=1.0 - rank / 10, width=8, height=8)
