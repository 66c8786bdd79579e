"""What travels in the queues: small JSON texts, versioned, and validated like any input from outside.

A message carries references, never tensors or pictures. Every field that a stage needs is in it, so that a worker knows
nothing but its model; and what a stage sends on follows from what it received (`EncodeTask.next` and its like).

The models below are one version of the messages: within it no field is added, taken away, or changed, since whoever
runs the same version by other code must understand it. A change makes a new version, and the old one stays readable.
"""

import time
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError, model_validator
from pydantic_core import from_json

from smalti.errors import (
    ExpiredMessageError,
    MalformedMessageError,
    OversizedMessageError,
    UnknownVersionError,
)
from smalti.parameters import Priority, SamplingParameters, Seed
from smalti.storage.keys import JobId, JobKeys, ObjectRef
from smalti.validation import Strict, first_problem

VERSION: Final = 1
MAX_MESSAGE_BYTES = 64 * 1024
"""Bytes of JSON, in UTF-8."""
MAX_PROMPT_LENGTH = 4000
"""Characters; more than the 64 tokens that a model reads can hold."""
MAX_IN_CHUNK = 64
"""Candidates that travel together."""


MAX_CHUNKS = 256
"""Chunks that one message may ask for."""
MAX_CANDIDATES = 2**20
"""The indices of candidates are below it."""
MAX_GIVEN_TOKENS = 4096
"""Image tokens that a message may give for the first places."""


class Stage(StrEnum):
    """What work is waiting for; each has its queues."""

    ENCODE = "encode"
    GENERATE = "generate"
    DECODE = "decode"
    RANK = "rank"
    EVENTS = "events"
    """Not a stage of the work, but what the stages tell the gateway."""


Prompt = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PROMPT_LENGTH)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Index = Annotated[int, Field(ge=0, lt=1024)]
CandidateIndex = Annotated[int, Field(ge=0, lt=MAX_CANDIDATES)]
Indices = Annotated[tuple[CandidateIndex, ...], Field(min_length=1, max_length=MAX_IN_CHUNK)]
ShortText = Annotated[str, StringConstraints(max_length=200)]


class Trace(Strict):
    """The trace that the work belongs to, as the W3C recommendation *Trace Context* writes it."""

    traceparent: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{2}(-[0-9a-f]+){3}$", max_length=100)]
    tracestate: Annotated[str, StringConstraints(max_length=512)] = ""


class Chunk(Strict):
    """Candidates of a job that travel together."""

    chunk: Index
    """Its number in the job."""
    candidates: Indices
    """The indices of its candidates in the job."""


class Envelope(Strict):
    """What every message carries."""

    stage_queue: ClassVar[Stage]

    version: Literal[1] = VERSION
    job: JobId
    attempt: Annotated[int, Field(ge=1, le=1000)] = 1
    """How often the work has been begun, this time counted; each repetition, whatever its reason, adds one."""
    lease: Count = 0
    """The lease under which the gateway has sent the work; what comes back under an older one is old."""
    expires: Annotated[float, Field(ge=0)]
    """When nobody waits for the result any more, in seconds since 1970 (UTC)."""
    priority: Priority = Priority.INTERACTIVE
    trace: Trace | None = None

    @property
    def keys(self) -> JobKeys:
        """Where the job's objects are."""
        return JobKeys(self.job)

    @property
    def queue(self) -> str:
        """The queue that the message goes to."""
        return queue_name(self.stage_queue, self.priority)

    @property
    def work(self) -> tuple[str, ...]:
        """What the message asks for: two messages with the same are the same work."""
        raise NotImplementedError

    def to_json(self) -> str:
        """Writes the message.

        Raises:
            OversizedMessageError: it has more bytes than a message may have.
        """
        text = self.model_dump_json(exclude_none=True)
        _check_size(text)
        return text

    def again(self) -> Self:
        """Returns the message for the next attempt at the same work."""
        return self.model_copy(update={"attempt": self.attempt + 1})

    def _carried(self) -> dict[str, Any]:
        """The fields that go on to the message that follows."""
        return {name: getattr(self, name) for name in Envelope.model_fields}


class Work(Envelope):
    """What every task of a stage carries."""

    model: ShortText
    """The name of the model."""
    revision: ShortText
    """The revision of the model; a worker with another one must not take the work."""
    prompt: Prompt
    seed: Seed
    sampling: SamplingParameters
    candidates_in_job: Annotated[int, Field(ge=1, le=1024)]
    """How many candidates the job draws in all, for the record that its pictures carry."""
    given: Annotated[tuple[Count, ...], Field(max_length=MAX_GIVEN_TOKENS)] = ()
    """Image tokens of the first places, the same for all candidates; drawing goes on behind them."""

    def done(
        self,
        *objects: ObjectRef,
        seconds: float = 0.0,
        skipped: bool = False,
        reading: "Reading | None" = None,
    ) -> "StageDone":
        """Returns the event that says that the stage is done.

        Args:
            objects: what it has written, durably.
            seconds: how long the engine took.
            skipped: whether the objects were there already.
            reading: how the prompt was read, where the stage is the one that reads it.
        """
        return StageDone(
            **self._of_event(), objects=objects, seconds=seconds, skipped=skipped, reading=reading
        )

    def failed(self, reason: "FailureReason", detail: str, *, permanent: bool = True) -> "Failed":
        """Returns the event that says that the stage has failed; permanently, when trying again is of no use."""
        return Failed(**self._of_event(), reason=reason, detail=detail[:500], permanent=permanent)

    def _carried(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in Work.model_fields}

    def _of_event(self) -> dict[str, Any]:
        chunk = getattr(self, "chunk", None)
        return {**Envelope._carried(self), "stage": self.stage_queue, "chunk": chunk}


class EncodeTask(Work):
    """Encode the prompt, and let the chunks be generated."""

    stage_queue = Stage.ENCODE

    kind: Literal["encode"] = "encode"
    chunks: Annotated[tuple[Chunk, ...], Field(min_length=1, max_length=MAX_CHUNKS)]
    """Of the job's chunks those that are to be made; a job of more has several such tasks."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        numbers = [chunk.chunk for chunk in self.chunks]
        candidates = [index for chunk in self.chunks for index in chunk.candidates]
        if len(set(numbers)) < len(numbers) or len(set(candidates)) < len(candidates):
            raise ValueError("a chunk or a candidate occurs twice")
        return self

    @property
    def work(self) -> tuple[str, ...]:
        """See `Envelope`."""
        return self.job, self.kind, *(str(chunk.chunk) for chunk in self.chunks)

    def next(self, encoding: ObjectRef) -> "tuple[GenerateTask, ...]":
        """Returns what follows when the encoding is durable."""
        return tuple(
            GenerateTask(**self._carried(), chunk=chunk.chunk, candidates=chunk.candidates, encoding=encoding)
            for chunk in self.chunks
        )


class ChunkTask(Work):
    """What every task for one chunk carries."""

    kind: str
    chunk: Index
    candidates: Indices

    @model_validator(mode="after")
    def _check_candidates(self) -> Self:
        if len(set(self.candidates)) < len(self.candidates):
            raise ValueError("a candidate occurs twice")
        return self

    @property
    def work(self) -> tuple[str, ...]:
        """See `Envelope`."""
        return self.job, self.kind, str(self.chunk)

    def from_the_start(self) -> EncodeTask:
        """Returns what makes the chunk from the prompt again.

        It is for a stage that finds an object missing or damaged. A damaged one has to be deleted first: the stage that
        made it would find it, and skip its work.
        """
        chunk = Chunk(chunk=self.chunk, candidates=self.candidates)
        return EncodeTask(**{**Work._carried(self), "attempt": self.attempt + 1}, chunks=(chunk,))

    def _carried(self) -> dict[str, Any]:
        return {**super()._carried(), "chunk": self.chunk, "candidates": self.candidates}


class GenerateTask(ChunkTask):
    """Draw the tokens of the candidates."""

    stage_queue = Stage.GENERATE

    kind: Literal["generate"] = "generate"
    encoding: ObjectRef

    @model_validator(mode="after")
    def _check_encoding(self) -> Self:
        _check_keys((self.encoding,), (self.keys.encoding,))
        return self

    def next(self, tokens: ObjectRef) -> "DecodeTask":
        """Returns what follows when the tokens are durable."""
        return DecodeTask(**self._carried(), tokens=tokens)

    def progress(self, rows: int, of: int, tokens: tuple[tuple[int, ...], ...] = ()) -> "Progress":
        """Returns the event that tells how far the chunk is."""
        return Progress(**self._of_event(), candidates=self.candidates, rows=rows, of=of, tokens=tokens)


class DecodeTask(ChunkTask):
    """Turn the tokens of the candidates into pictures."""

    stage_queue = Stage.DECODE

    kind: Literal["decode"] = "decode"
    tokens: ObjectRef

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        _check_keys((self.tokens,), (self.keys.tokens(self.chunk),))
        return self

    def next(self, pictures: tuple[ObjectRef, ...]) -> "RankTask":
        """Returns what follows when the pictures are durable; they are in the order of the candidates."""
        return RankTask(**self._carried(), pictures=pictures)


class RankTask(ChunkTask):
    """Score the pictures of the candidates. Nothing follows but the event that it is done."""

    stage_queue = Stage.RANK

    kind: Literal["rank"] = "rank"
    pictures: Annotated[tuple[ObjectRef, ...], Field(max_length=MAX_IN_CHUNK)]
    """In the order of the candidates."""

    @model_validator(mode="after")
    def _check_pictures(self) -> Self:
        _check_keys(self.pictures, tuple(self.keys.candidate(index) for index in self.candidates))
        return self


class FailureReason(StrEnum):
    """Why work has failed."""

    EXPIRED = "expired"
    """Its time had run out when its turn came."""
    CANCELLED = "cancelled"
    """It was taken back."""
    INVALID = "invalid"
    """It asks for what cannot be done."""
    MODEL = "model"
    """The service has another model, or another revision of it."""
    POISON = "poison"
    """It was begun as often as it may be, and each time the worker did not live to finish it."""
    EXHAUSTED = "exhausted"
    """It was tried as often as it may be, and failed each time."""


class Event(Envelope):
    """What a stage tells the gateway; it never expires, whatever time the work has."""

    stage_queue = Stage.EVENTS

    kind: str
    stage: Stage
    chunk: Index | None = None
    """None where it concerns the whole job: the encoding."""

    @property
    def queue(self) -> str:
        """The queue of events; they have one order."""
        return queue_name(Stage.EVENTS)

    @property
    def work(self) -> tuple[str, ...]:
        """See `Envelope`."""
        return self.job, self.kind, self.stage, str(self.chunk), str(self.lease), str(self.attempt)


class Reading(Strict):
    """How the model has read the prompt; see `smalti.text.rewording.Rewording`."""

    drawn: Prompt
    """What is drawn."""
    cut: bool
    """The prompt is longer than the model reads."""
    unknown: Annotated[tuple[ShortText, ...], Field(max_length=64)] = ()
    left_out: Annotated[tuple[ShortText, ...], Field(max_length=64)] = ()
    notice: Annotated[str, StringConstraints(max_length=2000)] = ""


class StageDone(Event):
    """A stage is done, and what it has written is durable."""

    kind: Literal["done"] = "done"
    objects: Annotated[tuple[ObjectRef, ...], Field(max_length=MAX_IN_CHUNK)]
    seconds: Annotated[float, Field(ge=0)] = 0.0
    """How long the engine took."""
    skipped: bool = False
    """The objects were there already."""
    reading: Reading | None = None
    """Set when the prompt was encoded."""

    @model_validator(mode="after")
    def _check_objects(self) -> Self:
        for ref in self.objects:
            if ref.key not in self.keys:
                raise ValueError(f"{ref.key} is not in the job's folder")
        return self


class Progress(Event):
    """How far a chunk is; to be lost without harm."""

    kind: Literal["progress"] = "progress"
    candidates: Indices
    rows: Count
    """The rows of tiles that are laid."""
    of: Count
    """The rows of tiles that a picture has."""
    tokens: Annotated[
        tuple[Annotated[tuple[Count, ...], Field(max_length=64)], ...], Field(max_length=64)
    ] = ()
    """The tokens of the last row, for each candidate, for those who show the picture as it is laid."""

    @property
    def work(self) -> tuple[str, ...]:
        """See `Envelope`."""
        return *super().work, str(self.rows)


class Failed(Event):
    """A stage has failed."""

    kind: Literal["failed"] = "failed"
    reason: FailureReason
    detail: Annotated[str, StringConstraints(max_length=500)]
    """One line for the user."""
    permanent: bool
    """Trying again is of no use."""


Task = EncodeTask | GenerateTask | DecodeTask | RankTask
Message = Task | StageDone | Progress | Failed

_ADAPTER: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def queue_name(stage: Stage, priority: Priority = Priority.INTERACTIVE) -> str:
    """Returns the queue of a stage and a priority; events have one for all."""
    return str(stage) if stage is Stage.EVENTS else f"{stage}.{priority.value}"


def dead_queue_name(stage: Stage) -> str:
    """Returns the queue in which is kept what a stage cannot work on."""
    return f"{stage}.dead"


def parse(text: str | bytes, *, now: float | None = None) -> Message:
    """Reads a message.

    Args:
        text: what has come.
        now: the time in seconds since 1970; None is the clock's.

    Raises:
        OversizedMessageError: it is too large; it was not looked at.
        MalformedMessageError: it is no JSON, or not what a message of its version says.
        UnknownVersionError: it has a version that this code does not know.
        ExpiredMessageError: it is a task for whose result nobody waits any more.
    """
    _check_size(text)
    try:
        version = from_json(text)["version"]
    except (ValueError, TypeError, KeyError):
        raise MalformedMessageError("the message is no JSON object with a version") from None
    if type(version) is not int or version < 1:
        raise MalformedMessageError("the version of the message is no number from 1 on")
    if version > VERSION:
        raise UnknownVersionError(version, VERSION)
    try:
        message = _ADAPTER.validate_json(text, strict=True)
    except ValidationError as error:
        problem = first_problem(error, show_value=False)
        raise MalformedMessageError(f"{problem.field or 'message'}: {problem.message}") from None
    now = time.time() if now is None else now
    if not isinstance(message, Event) and message.expires <= now:
        raise ExpiredMessageError(message, now - message.expires)
    return message


def _check_size(text: str | bytes) -> None:
    size = len(text.encode() if isinstance(text, str) else text)
    if size > MAX_MESSAGE_BYTES:
        raise OversizedMessageError(f"the message has {size} bytes; the most is {MAX_MESSAGE_BYTES}")


def _check_keys(refs: tuple[ObjectRef, ...], keys: tuple[str, ...]) -> None:
    """Refuses references to anything but what the job and the chunk say."""
    if tuple(ref.key for ref in refs) != keys:
        raise ValueError(f"the objects are not those at {', '.join(keys)}")
