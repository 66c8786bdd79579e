"""The tasks of the shards of a batch: one message for each stage and shard, from the prompts to the output."""

from functools import cache
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import Field, model_validator

from smalti.messages.envelope import Extensible
from smalti.messages.events import BATCHES, ShardProgress
from smalti.messages.queues import Stage
from smalti.messages.routed import RoutedTask
from smalti.parameters import Priority
from smalti.storage import JobId, ObjectRef

SHARDS_SINCE: Final = 3
"""The first version in which there are tasks of shards."""
MAX_IN_SHARD: Final = 1024
"""Prompts of a shard."""
MAX_SHARDS: Final = 10**6
"""Shards of a batch."""

Item = TypeVar("Item")


class ShardRange(Extensible):
    """Prompts of a shard that are drawn together: all of them, or a part of a shard that was halved."""

    number: Annotated[int, Field(ge=0, lt=MAX_SHARDS)]
    """The number of the shard in the batch."""
    start: Annotated[int, Field(ge=0, lt=MAX_IN_SHARD)] = 0
    """The first of the prompts in the shard."""
    count: Annotated[int, Field(ge=1, le=MAX_IN_SHARD)]
    part: bool = False
    """Whether the shard was halved."""

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.start + self.count > MAX_IN_SHARD or (self.start and not self.part):
            raise ValueError(f"a shard has at most {MAX_IN_SHARD} prompts, and begins with the first")
        return self

    @property
    def name(self) -> str:
        """The name of its files, without an ending."""
        return f"{self.number:05d}-{self.start}-{self.count}" if self.part else f"{self.number:05d}"

    def of(self, prompts: list[Item]) -> list[Item]:
        """Returns these of the prompts of the shard; fewer if it does not have them all."""
        return prompts[self.start : self.start + self.count]

    def halves(self) -> "tuple[ShardRange, ShardRange]":
        """Returns its halves; it must have two prompts at least."""
        if self.count < 2:
            raise ValueError("a single prompt cannot be halved")
        first = (self.count + 1) // 2
        return (
            ShardRange(number=self.number, start=self.start, count=first, part=True),
            ShardRange(number=self.number, start=self.start + first, count=self.count - first, part=True),
        )


def batch_folder(batch: JobId) -> str:
    """Returns the prefix of the keys of everything that belongs to a batch."""
    return f"{BATCHES}/{batch}/"


def shard_key(batch: JobId, number: int) -> str:
    """Returns the key of the prompts of a shard."""
    return f"{batch_folder(batch)}shards/{number:05d}.jsonl"


def shard_job(batch: JobId, shard: ShardRange) -> str:
    """Returns the id under which the stages work on a shard: that of the folder of its intermediate objects."""
    return f"{batch}-{shard.name}"


class ShardTask(RoutedTask):
    """The fields of the tasks of a shard, which is a job of its own for the stages."""

    version: Literal[3] = SHARDS_SINCE
    kind: str
    priority: Priority = Priority.BATCH
    """Always that of batches."""
    batch: JobId
    range: ShardRange
    """Which prompts these are."""
    shard: ObjectRef
    """The file with the prompts of the shard, of which the range may be a part."""
    picture_format: Literal["png", "webp"] = "png"
    """The format of the pictures in the output."""
    slots: Annotated[int, Field(ge=1, le=2**20)] | None = None
    """Candidates of the shard that may be generated at the same time; None for no limit."""
    has_second_pass: bool = False
    """Whether the chosen pictures of some prompt are refined or enlarged, so that the refiner comes last."""

    @model_validator(mode="after")
    def _check_shard(self) -> Self:
        if self.priority is not Priority.BATCH:
            raise ValueError("a shard must have the priority of batches")
        if self.job != shard_job(self.batch, self.range):
            raise ValueError(f"the job must be {shard_job(self.batch, self.range)}")
        if self.shard.key != shard_key(self.batch, self.range.number):
            raise ValueError(f"the shard must be {shard_key(self.batch, self.range.number)}")
        return self

    @property
    def work_key(self) -> tuple[str, ...]:  # noqa: D102
        return self.job, self.kind, *self._bound

    def from_the_start(self) -> "EncodeShardTask":
        """Returns the task that makes the shard again, starting from the prompts."""
        return EncodeShardTask(**{**ShardTask._carried(self), "attempt": self.attempt + 1})

    def progress(self, done: int, total: int) -> ShardProgress:
        """Returns the event that tells how far the stage is.

        Args:
            done: candidates that the stage has finished; prompts at stages before there are any.
            total: those that it works on.
        """
        return ShardProgress(**self._event_fields(), done=done, total=total)

    def _carried(self) -> dict[str, Any]:
        """Returns the fields that the next message repeats, unknown ones too."""
        return self._unknown(_known_fields()) | {
            name: getattr(self, name) for name in ShardTask.model_fields if name != "kind"
        }


class EncodeShardTask(ShardTask):
    """Encode the prompts of a shard."""

    stage_queue = Stage.ENCODE

    kind: Literal["encode-shard"] = "encode-shard"

    def next(self, encodings: ObjectRef) -> "GenerateShardTask":
        """Returns the task that follows; the encodings must be durable."""
        return GenerateShardTask(**self._carried(), encodings=encodings)


class GenerateShardTask(ShardTask):
    """Generate the image tokens of all candidates of a shard."""

    stage_queue = Stage.GENERATE

    kind: Literal["generate-shard"] = "generate-shard"
    encodings: ObjectRef

    @model_validator(mode="after")
    def _check_encodings(self) -> Self:
        self._check_names((self.encodings,), (self.keys.shard_encodings,))
        return self

    def next(self, tokens: ObjectRef) -> "DecodeShardTask":
        """Returns the task that follows; the tokens must be durable."""
        return DecodeShardTask(**self._carried(), encodings=self.encodings, tokens=tokens)


class _AfterTokens(ShardTask):
    """The fields of the tasks that follow the generator."""

    encodings: ObjectRef
    tokens: ObjectRef

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        self._check_names((self.encodings, self.tokens), (self.keys.shard_encodings, self.keys.shard_tokens))
        return self

    def _carried(self) -> dict[str, Any]:
        return {**super()._carried(), "encodings": self.encodings, "tokens": self.tokens}


class DecodeShardTask(_AfterTokens):
    """Decode the tokens of a shard into pictures."""

    stage_queue = Stage.DECODE

    kind: Literal["decode-shard"] = "decode-shard"

    def next(self, candidates: ObjectRef) -> "RankShardTask":
        """Returns the task that follows; the candidates must be durable."""
        return RankShardTask(**self._carried(), candidates=candidates)


class RankShardTask(_AfterTokens):
    """Score the candidates of a shard, and choose the best; write the output, unless the refiner does."""

    stage_queue = Stage.RANK

    kind: Literal["rank-shard"] = "rank-shard"
    candidates: ObjectRef

    @model_validator(mode="after")
    def _check_candidates(self) -> Self:
        self._check_names((self.candidates,), (self.keys.shard_candidates,))
        return self

    def next(self, chosen: ObjectRef) -> "RefineShardTask":
        """Returns the task that follows with `has_second_pass`; the chosen pictures must be durable."""
        return RefineShardTask(**self._carried(), chosen=chosen)


class RefineShardTask(_AfterTokens):
    """Refine or enlarge the chosen pictures of a shard, and write the output."""

    stage_queue = Stage.REFINE

    kind: Literal["refine-shard"] = "refine-shard"
    chosen: ObjectRef

    @model_validator(mode="after")
    def _check_chosen(self) -> Self:
        self._check_names((self.chosen,), (self.keys.shard_chosen,))
        return self


@cache
def _known_fields() -> frozenset[str]:
    """Returns the names of the fields of all tasks of shards."""
    kinds = (EncodeShardTask, GenerateShardTask, DecodeShardTask, RankShardTask, RefineShardTask)
    return frozenset(name for kind in kinds for name in kind.model_fields)
