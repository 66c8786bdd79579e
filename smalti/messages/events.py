"""The events that stages send to the gateway."""

from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from smalti.messages.envelope import (
    EXTENSIBLE_SINCE,
    MAX_IN_CHUNK,
    Count,
    Envelope,
    Extensible,
    Index,
    Indices,
    Prompt,
)
from smalti.messages.queues import Stage, queue_name
from smalti.storage import ObjectRef

BATCHES: Final = "batches"
"""The folder of the objects of all batches."""
MAX_WORDS = 64
"""Words in each list of a `PromptReading`."""
MAX_WORD_LENGTH = 200
"""Characters of each of these words."""
MAX_NOTICE_LENGTH = 2000
"""Characters of the notice of a `PromptReading`."""

_Words = Annotated[
    tuple[Annotated[str, StringConstraints(max_length=MAX_WORD_LENGTH)], ...], Field(max_length=MAX_WORDS)
]


class FailureReason(StrEnum):
    """Why work has failed."""

    EXPIRED = "expired"
    """The job's time ran out before the work was done."""
    CANCELLED = "cancelled"
    """The job was cancelled."""
    INVALID = "invalid"
    """The task asks for something impossible."""
    MODEL = "model"
    """The service has another model, or another revision of it."""
    INPUTS = "inputs"
    """An object that the work needs is missing or damaged, and only the gateway can have it made again."""
    POISON = "poison"
    """The worker died at every attempt, and no attempt is left."""
    EXHAUSTED = "exhausted"
    """Every attempt failed, and no attempt is left."""


class Event(Envelope):
    """A message from a stage to the gateway; events never expire, although they have the task's `expires`."""

    stage_queue = Stage.EVENTS

    kind: str
    stage: Stage
    chunk: Index | None = None
    """None for the encoding, which concerns the whole job."""

    @property
    def queue(self) -> str:
        """The queue of events; it is the same for all priorities, so that events keep their order."""
        return queue_name(Stage.EVENTS)

    @property
    def work_key(self) -> tuple[str, ...]:  # noqa: D102
        return self.job, self.kind, self.stage, str(self.chunk), str(self.lease), str(self.attempt)


class PromptReading(Extensible):
    """The prompt as the model reads it."""

    model_config = ConfigDict(populate_by_name=True)

    # Messages and the gateway's database call it "drawn".
    effective_prompt: Prompt = Field(validation_alias="drawn", serialization_alias="drawn")
    """The prompt in words that the model knows; this is what is encoded."""
    cut: bool
    """Whether the effective prompt is longer than the model reads."""
    unknown: _Words = ()
    """Words of the prompt that the model does not know."""
    left_out: _Words = ()
    """Words that the model knows but cannot draw here."""
    notice: Annotated[str, StringConstraints(max_length=MAX_NOTICE_LENGTH)] = ""
    """One line on what the effective prompt replaces; empty if nothing is lost."""
    text_tokens: Annotated[int, Field(ge=0)] | None = None
    """Number of text tokens that the encoder reads; None if an older encoder has not counted them."""


class ShardReport(Extensible):
    """What has become of the prompts of a shard."""

    part: ObjectRef
    """Their results: JSON lines, one for each prompt. It is in the folder of the batch, and stays."""
    tar: ObjectRef | None = None
    """Their pictures, in the folder of the batch; None if there are none."""
    drawn: Count
    """Prompts with pictures."""
    failed: Count
    """Prompts without."""
    candidates: Count
    """Candidates that were generated."""
    pictures: Count
    """Pictures in the tar."""
    bytes: Annotated[int, Field(ge=0, lt=2**63)]
    """Bytes of the tar."""


class StageDone(Event):
    """A stage has finished, and its objects are durable."""

    kind: Literal["done"] = "done"
    objects: Annotated[tuple[ObjectRef, ...], Field(max_length=MAX_IN_CHUNK)]
    seconds: Annotated[float, Field(ge=0)] = 0.0
    """Time spent in the engine."""
    skipped: bool = False
    """Whether an earlier attempt had already written the objects."""
    reading: PromptReading | None = None
    """Set by the encoder."""
    shard: ShardReport | None = None
    """Set by the last stage of a shard. Since version 3."""

    @model_validator(mode="after")
    def _check_objects(self) -> Self:
        for ref in self.objects:
            if ref.key not in self.keys:
                raise ValueError(f"{ref.key} is not in the job's folder")
        if self.shard is not None:
            self._check_report(self.shard)
        return self

    def _check_report(self, report: ShardReport) -> None:
        if self.version < EXTENSIBLE_SINCE:
            raise ValueError(f"shard needs version {EXTENSIBLE_SINCE}")
        for ref in (report.part, *([report.tar] if report.tar else [])):
            top, _, rest = ref.key.partition("/")
            if top != BATCHES or not self.job.startswith(f"{rest.partition('/')[0]}-"):
                raise ValueError(f"{ref.key} is not in the folder of the batch")


class ShardProgress(Event):
    """How far a stage is with a shard; losing such a message does no harm. Since version 3."""

    kind: Literal["shard-progress"] = "shard-progress"
    done: Count
    """Candidates, or before there are any prompts, that are done."""
    total: Count

    @property
    def work_key(self) -> tuple[str, ...]:  # noqa: D102
        return *super().work_key, str(self.done)


class Progress(Event):
    """The progress of a chunk; losing such a message does no harm."""

    kind: Literal["progress"] = "progress"
    candidates: Indices
    rows: Count
    """Rows of tokens that every candidate of the chunk has."""
    of: Count
    """Rows of tokens in a picture."""
    tokens: Annotated[
        tuple[Annotated[tuple[Count, ...], Field(max_length=4096)], ...], Field(max_length=64)
    ] = ()
    """The tokens of the last rows of each candidate, for previews: of all that no event before has had."""

    @property
    def work_key(self) -> tuple[str, ...]:  # noqa: D102
        return *super().work_key, str(self.rows)


class Failed(Event):
    """A stage has failed."""

    kind: Literal["failed"] = "failed"
    reason: FailureReason
    detail: Annotated[str, StringConstraints(max_length=500)]
    """One line for the user."""
    permanent: bool
    """Whether another attempt would fail as well."""
