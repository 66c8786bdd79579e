"""The fields of every message of a job."""

from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from smalti.errors import OversizedMessageError
from smalti.messages.queues import Stage, queue_name
from smalti.parameters import FREE, CandidateIndex, Priority
from smalti.storage import JobId, JobKeys
from smalti.validation import Strict

VERSION: Final = 3
"""The newest version that this code reads; it reads all before it, too."""
DEFAULT_VERSION: Final = 2
"""The version that is written unless a setting says otherwise; see `MessageSettings.write`."""
EXTENSIBLE_SINCE: Final = 3
"""The first version whose messages may have unknown fields, which a later release has added."""
MAX_MESSAGE_BYTES = 64 * 1024
"""Bytes of JSON, in UTF-8."""
MAX_PROMPT_LENGTH = 4000
"""Characters; more than the 64 tokens that a model reads can hold."""
MAX_IN_CHUNK = 64
"""Candidates in one chunk."""
MAX_TO_REFINE = 32
"""Pictures in one task of the refiner; each needs three references."""
MAX_CLOCK_SKEW_SECONDS: Final = 300.0
"""Time by which a worker's clock may be fast. So long, a task that has expired by that clock is worked on nevertheless,
unless the gateway has written the marker that ends its job."""
MAX_CHUNKS = 256
"""Chunks in one message."""
MAX_GIVEN_TOKENS = 4096
"""Positions for which a message may give image tokens."""

Prompt = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PROMPT_LENGTH)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Token = Annotated[int, Field(ge=FREE, le=2**31 - 1)]
Index = Annotated[int, Field(ge=0, lt=2048)]
Indices = Annotated[tuple[CandidateIndex, ...], Field(min_length=1, max_length=MAX_IN_CHUNK)]
ShortText = Annotated[str, StringConstraints(max_length=200)]


class Extensible(Strict):
    """A part of a message to which a later release may add fields; those that are unknown are kept."""

    model_config = ConfigDict(extra="allow")


class Trace(Extensible):
    """The trace that the message belongs to, in the form of the W3C recommendation *Trace Context*."""

    traceparent: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{2}(-[0-9a-f]+){3}$", max_length=100)]
    tracestate: Annotated[str, StringConstraints(max_length=512)] = ""


class Chunk(Extensible):
    """Candidates of a job that are processed together."""

    chunk: Index
    """The chunk's number in the job."""
    candidates: Indices
    """The candidates' indices in the job."""


class Envelope(Extensible):
    """The fields of every message of a job."""

    stage_queue: ClassVar[Stage]

    version: Literal[1, 2, 3] = DEFAULT_VERSION
    """A message has the version of the message that it follows from."""
    job: JobId
    attempt: Annotated[int, Field(ge=1, le=1000)] = 1
    """Number of this attempt, counted from 1; every repetition adds one, whatever its reason."""
    lease: Count = 0
    """The lease under which the gateway sent the work; the gateway ignores results of an older lease."""
    expires: Annotated[float, Field(ge=0)]
    """Time after which the result is not needed, in seconds since 1970 by the clock of the gateway's database."""
    priority: Priority = Priority.INTERACTIVE
    trace: Trace | None = None

    @model_validator(mode="after")
    def _check_unknown(self) -> Self:
        if self.version < EXTENSIBLE_SINCE and self.model_extra:
            raise ValueError(f"there is no field {next(iter(self.model_extra))} in version {self.version}")
        return self

    @property
    def late_at(self) -> float:
        """Time by a worker's clock at which the message has expired by every other clock too."""
        return self.expires + MAX_CLOCK_SKEW_SECONDS

    @property
    def keys(self) -> JobKeys:
        """The keys of the job's objects."""
        return JobKeys(self.job)

    @property
    def queue(self) -> str:
        """The queue that the message goes to."""
        return queue_name(self.stage_queue, self.priority)

    @property
    def work_key(self) -> tuple[str, ...]:
        """Identifies the work: two messages with the same key ask for the same work."""
        raise NotImplementedError

    def to_json(self) -> str:
        """Returns the message as JSON.

        Raises:
            OversizedMessageError: the JSON has more than `MAX_MESSAGE_BYTES` bytes.
        """
        text = self.model_dump_json(exclude_none=True, by_alias=True)
        check_size(text)
        return text

    def next_attempt(self) -> Self:
        """Returns the message for the next attempt at the same work."""
        return self.model_copy(update={"attempt": self.attempt + 1})

    def _carried(self) -> dict[str, Any]:
        """Returns the fields that the next message repeats."""
        return {name: getattr(self, name) for name in Envelope.model_fields}


def check_size(text: str | bytes) -> None:
    """Raises `OversizedMessageError` if the text is too large for a message."""
    size = len(text.encode() if isinstance(text, str) else text)
    if size > MAX_MESSAGE_BYTES:
        raise OversizedMessageError(f"the message has {size} bytes; the limit is {MAX_MESSAGE_BYTES}")
