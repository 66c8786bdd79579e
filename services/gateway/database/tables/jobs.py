"""Jobs, their chunks and candidates, and pending tasks in the object store."""

from enum import IntEnum, StrEnum
from typing import Any, Final

from sqlalchemy import (
    Boolean,
    Float,
    ForeignKey,
    Index,
    LargeBinary,
    SmallInteger,
    String,
    Text,
    false,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from smalti.parameters import Priority
from smalti.services.gateway.database.columns import ReadableEnum, ReadableJson
from smalti.services.gateway.database.tables.base import (
    DEFAULT_TENANT,
    MAX_ID_LENGTH,
    MAX_REVISION_LENGTH,
    Base,
    partial_index,
)


class JobState(StrEnum):
    """State of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


OPEN_STATES: Final = (JobState.QUEUED, JobState.RUNNING)
"""The states of an open job. A job leaves them once, for one of the others, which are final."""


class ChunkState(StrEnum):
    """State of a chunk."""

    WAITING = "waiting"
    """Not sent yet."""
    LEASED = "leased"
    """Sent, or about to be. It is sent again when its lease expires."""
    DONE = "done"
    """All its candidates are ranked, or all its pictures are refined."""
    DROPPED = "dropped"
    """Its job ended without it."""


class ChunkProgress(IntEnum):
    """The last stage that has finished a chunk."""

    NOTHING = 0
    ENCODED = 1
    GENERATED = 2
    DECODED = 3
    RANKED = 4


class StoreAction(StrEnum):
    """A change of the object store that is due after the end of a job."""

    WRITE_MARKER = "mark"
    """Write the marker that tells the stages to stop."""
    CLEAN_UP = "tidy"
    """Delete the intermediate objects."""
    CLEAN_UP_LATE = "tidy late"
    """Delete objects that were written late, and the marker, once no message of the job can be handled any more.

    A job that has not succeeded loses all its objects.
    """
    DELETE = "delete"
    """Delete everything but the marker, since the job has been removed."""
    DELETE_LATE = "delete late"
    """Delete everything, once no message of the removed job can be handled any more."""
    DELETE_AGAIN = "delete again"
    """Delete everything days later, in case a listing of the store was behind, or a stage wrote very late."""
    END_SHARD = "end shard"
    """Write the marker of a shard of a batch that needs no more work, and only then delete everything else of it.

    Without its record, a stage that works on a copy of its message does not find what was written; the marker stops it.
    """


PRIORITY_NUMBERS: Final = {Priority.INTERACTIVE: 0, Priority.BATCH: 1}
PRIORITIES: Final = {number: priority for priority, number in PRIORITY_NUMBERS.items()}

# Literals, since a partial index is used only if the query repeats its predicate literally.
IS_OPEN: Final = text("jobs.state IN ('queued', 'running')")
IS_WAITING: Final = text("chunks.state = 'waiting'")
IS_LEASED: Final = text("chunks.state = 'leased'")


class Job(Base):
    """A job."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("jobs_newest", "created", "id"),
        Index("jobs_by_state", "state", "created", "id"),
        partial_index("jobs_open", "priority", "created", "id", where="state IN ('queued', 'running')"),
        partial_index("jobs_expire", "expires", where="state IN ('queued', 'running')"),
        Index("jobs_delete", "delete_at"),
        Index("jobs_ended", "ended"),
        Index("jobs_requests", "tenant", "request_id", unique=True),
        Index("jobs_of_tenant", "tenant", "created", "id"),
        Index("jobs_stored", "tenant", "size"),
        partial_index("jobs_set_aside", "set_aside_until", where="set_aside_until IS NOT NULL"),
    )

    id: Mapped[str] = mapped_column(String(MAX_ID_LENGTH), primary_key=True)
    version: Mapped[int]
    """Grows with every change that a client can see."""
    state: Mapped[JobState] = mapped_column(ReadableEnum(JobState))
    tenant: Mapped[str] = mapped_column(
        String(MAX_ID_LENGTH), default=DEFAULT_TENANT, server_default=DEFAULT_TENANT
    )
    """The id of its tenant; no foreign key, since SQLite cannot add one with a default."""
    revision: Mapped[str | None] = mapped_column(String(MAX_REVISION_LENGTH))
    """The revision of the model that the job is bound to; None in jobs of older versions, which have it in `parameters`
    alone."""
    pinned: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    """Whether the request has named the revision, so that the job is never bound to another."""
    request_id: Mapped[str | None] = mapped_column(String(36))
    request_hash: Mapped[str | None] = mapped_column(String(64))
    """Hash of the request's content. A request with the same request_id and another hash is refused."""
    parameters: Mapped[dict[str, Any]]
    """`smalti.services.gateway.jobs.spec.JobParameters` as JSON."""
    given: Mapped[list[Any]]
    """Image tokens of the rows that are kept of an initial image."""
    priority: Mapped[int] = mapped_column(SmallInteger)
    labels: Mapped[dict[str, Any]]
    created: Mapped[int]
    started: Mapped[int | None]
    ended: Mapped[int | None]
    expires: Mapped[int]
    retention: Mapped[int]
    """Time for which the job is kept after its end, in microseconds."""
    delete_at: Mapped[int | None]
    """Time at which the job is deleted; set when it ends."""
    candidates: Mapped[int]
    rows: Mapped[int]
    """Rows of tokens to generate, over all candidates."""
    rows_drawn: Mapped[int]
    """Rows of tokens generated so far, over all candidates."""
    candidates_generated: Mapped[int] = mapped_column("drawn")
    candidates_decoded: Mapped[int] = mapped_column("decoded")
    candidates_ranked: Mapped[int] = mapped_column("ranked")
    pictures_to_refine: Mapped[int] = mapped_column(default=0)
    """Number of pictures that get a second pass after ranking; 0 for a job without one."""
    pictures_refined: Mapped[int] = mapped_column(default=0)
    pictures_refused: Mapped[int] = mapped_column(default=0)
    """Number of candidates whose pictures the operator's policy has refused."""
    asked_until: Mapped[int | None]
    """Time until which a gateway asks the operator's policy about the job's pictures, and the others do not."""
    asked_by: Mapped[str | None] = mapped_column(String(36))
    """The gateway that asks; None in claims of older versions."""
    refining: Mapped[bool] = mapped_column(Boolean, default=False)
    """Whether the pictures to refine are chosen, and have chunks of their own."""
    prompt_encoded: Mapped[bool] = mapped_column("encoded", Boolean)
    prompt_reading: Mapped[dict[str, Any] | None] = mapped_column("reading")
    """`smalti.messages.PromptReading` as JSON."""
    size: Mapped[int | None]
    """Bytes of what the request has brought; None in jobs of older versions."""
    encodings: Mapped[list[Any] | None] = mapped_column(ReadableJson(none_as_null=True))
    """The encodings that the encoder has written; see `smalti.services.gateway.jobs.objects`."""
    webhook: Mapped[dict[str, Any] | None]
    """`smalti.services.gateway.jobs.spec.JobWebhook` as JSON; None for that of the tenant."""
    lease: Mapped[int]
    """Number of the last lease. Each time chunks are sent, they get a new lease."""
    error: Mapped[bytes | None] = mapped_column(LargeBinary)
    """Serialized `google.rpc.Status` of a failed job."""
    trace: Mapped[dict[str, Any] | None]
    """`smalti.messages.Trace` of the call that created the job, as JSON."""
    trouble: Mapped[str | None] = mapped_column(Text)
    """Why a gateway has set the job aside; None while all is well."""
    set_aside_until: Mapped[int | None]
    """Time until which gateways that cannot read the job leave it alone."""
    set_aside_by: Mapped[str | None] = mapped_column(String(64))
    """The version of the gateways that cannot read the job; empty for all versions."""


class Label(Base):
    """A label, for finding jobs. `Job.labels` has all labels of a job."""

    __tablename__ = "labels"
    __table_args__ = (Index("labels_by_value", "key", "value", "job_id"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(63), primary_key=True)
    value: Mapped[str] = mapped_column(String(256))


class Chunk(Base):
    """Pictures of a job that travel together.

    Either `count` candidates, beginning with index `first`, from the prompt to their scores; or `count` chosen
    pictures, which are refined. The numbers of the latter follow those of the former.
    """

    __tablename__ = "chunks"
    __table_args__ = (
        partial_index("chunks_waiting", "priority", "created", "job_id", "number", where="state = 'waiting'"),
        partial_index(
            "chunks_of_revision",
            "revision",
            "priority",
            "tenant",
            "created",
            "job_id",
            "number",
            where="state = 'waiting'",
        ),
        partial_index("chunks_leased", "deadline", "job_id", "count", where="state = 'leased'"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    priority: Mapped[int] = mapped_column(SmallInteger)
    """Priority of the job. Chunks are sent in the order of `priority` and `created`, which are copied from the job."""
    created: Mapped[int]
    revision: Mapped[str | None] = mapped_column(String(MAX_REVISION_LENGTH))
    """The job's, copied; None in chunks of older versions."""
    tenant: Mapped[str] = mapped_column(
        String(MAX_ID_LENGTH), default=DEFAULT_TENANT, server_default=DEFAULT_TENANT
    )
    """The job's, copied; the default one in chunks of older versions."""
    first: Mapped[int]
    """Index of the first candidate; 0 for pictures to refine."""
    count: Mapped[int] = mapped_column(SmallInteger)
    state: Mapped[ChunkState] = mapped_column(ReadableEnum(ChunkState))
    reached: Mapped[int] = mapped_column(SmallInteger)
    """A `ChunkProgress`."""
    rows_drawn: Mapped[int] = mapped_column(SmallInteger)
    """Rows of tokens generated so far, per candidate."""
    lease: Mapped[int]
    """Lease under which the chunk was last sent; 0 before."""
    owner: Mapped[str | None] = mapped_column(String(36))
    """The gateway that has made the lease; None in those of older versions."""
    deadline: Mapped[int | None]
    """Time at which the lease expires."""
    sent: Mapped[bool] = mapped_column(Boolean)
    """Whether the broker has confirmed the message of this lease."""
    begun: Mapped[bool] = mapped_column("heard", Boolean)
    """Whether a worker is known to have begun a step under this lease, and not to have finished it. Otherwise the chunk
    may wait for a worker, which is not its fault."""
    losses: Mapped[int] = mapped_column(SmallInteger)
    """Number of expired leases."""
    attempts: Mapped[int] = mapped_column(SmallInteger)
    """Number of failed attempts."""
    pictures: Mapped[list[Any] | None] = mapped_column(ReadableJson(none_as_null=True))
    """The pictures to refine, each a `smalti.messages.PictureToRefine` as JSON; None for a chunk of candidates."""
    objects: Mapped[list[Any] | None] = mapped_column(ReadableJson(none_as_null=True))
    """The objects that the stages have written; see `smalti.services.gateway.jobs.objects`."""
    problem: Mapped[str | None] = mapped_column(Text)
    """Why the last attempt failed, if known."""


class ScoredCandidate(Base):
    """A candidate that has a score."""

    __tablename__ = "pictures"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    candidate: Mapped[int] = mapped_column(primary_key=True)
    """Index of the candidate in the job."""
    rank: Mapped[int | None] = mapped_column(SmallInteger)
    """Place among the pictures of the job, the best first; None for a candidate that is not among them."""
    score: Mapped[float] = mapped_column(Float(53))
    width: Mapped[int]
    height: Mapped[int]
    size: Mapped[int]
    """Size of the file, in bytes."""
    sha256: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(Text)
    wording: Mapped[str | None] = mapped_column(Text)
    """What was encoded for the candidate; None in a job whose candidates have no wordings of their own."""
    checked: Mapped[bool] = mapped_column(Boolean, default=False)
    """Whether the operator's policy was asked about the picture."""
    refusal: Mapped[str | None] = mapped_column(Text)
    """What the policy says to the caller if it refuses the picture, perhaps nothing; None if it does not refuse it."""


class StoreTask(Base):
    """A pending task in the object store. It outlives its job."""

    __tablename__ = "chores"
    __table_args__ = (Index("chores_due", "due"),)

    job_id: Mapped[str] = mapped_column(String(MAX_ID_LENGTH), primary_key=True)
    action: Mapped[StoreAction] = mapped_column("chore", ReadableEnum(StoreAction), primary_key=True)
    due: Mapped[int]
    state: Mapped[JobState] = mapped_column(ReadableEnum(JobState))
    """Final state of the job."""
    chunks: Mapped[int]
    """Number of chunks of the job."""
    varied: Mapped[bool] = mapped_column(Boolean)
    """Whether the job has encodings of several wordings."""
    tries: Mapped[int] = mapped_column(SmallInteger)
    """Number of failures."""
    owner: Mapped[str | None] = mapped_column(String(36))
    """The gateway that has claimed the task last; None in claims of older versions."""
    keys: Mapped[list[Any] | None] = mapped_column(ReadableJson(none_as_null=True))
    """Keys of the job's objects that the database knew, without the job's folder; None in tasks of older versions."""
