"""The tables: jobs, their chunks, what has been drawn, and what is still to be done in the object store.

Times are whole microseconds since 1970 (UTC). What is JSON is read whole and written whole.
"""

from enum import IntEnum, StrEnum
from typing import Any, ClassVar, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Enum,
    Float,
    ForeignKey,
    Index,
    LargeBinary,
    SmallInteger,
    String,
    Text,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from smalti.parameters import Priority

MAX_ID_LENGTH: Final = 64


class State(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


OPEN: Final = (State.QUEUED, State.RUNNING)
"""A job leaves these once, for one of the others, and stays there."""


class ChunkState(StrEnum):
    """Where a chunk is."""

    WAITING = "waiting"
    """It was not sent yet."""
    LEASED = "leased"
    """It was sent, or is about to be; when its lease runs out it is sent again."""
    DONE = "done"
    """Its pictures are ranked."""
    DROPPED = "dropped"
    """Its job ended without it."""


class Reached(IntEnum):
    """What has been done of a chunk."""

    NOTHING = 0
    ENCODED = 1
    DRAWN = 2
    DECODED = 3
    RANKED = 4


class Chore(StrEnum):
    """What is to be done in the object store for a job."""

    MARK = "mark"
    """Write the marker that tells the stages to stop."""
    TIDY = "tidy"
    """Delete what is of no use any more, but for the marker."""
    TIDY_LATE = "tidy late"
    """Delete it again with what was written late, and the marker: no message can be worked on any more."""
    DELETE = "delete"
    """Delete everything but the marker; the job has been removed."""
    DELETE_LATE = "delete late"
    """Delete everything: no message can be worked on any more."""


PRIORITY_NUMBERS: Final = {Priority.INTERACTIVE: 0, Priority.BATCH: 1}
PRIORITIES: Final = {number: priority for priority, number in PRIORITY_NUMBERS.items()}

# As literals, here and in queries: an index of a part of a table serves only those who ask for that part in its words.
IS_OPEN: Final = text("jobs.state IN ('queued', 'running')")
IS_WAITING: Final = text("chunks.state = 'waiting'")
IS_LEASED: Final = text("chunks.state = 'leased'")


def _part(of: str, *columns: str, where: str) -> Index:
    """Returns an index of a part of a table."""
    return Index(of, *columns, sqlite_where=text(where), postgresql_where=text(where))


def _values(kind: type[StrEnum]) -> Enum:
    """Returns the type of a column that holds the values of an enumeration as text."""
    return Enum(
        kind,
        native_enum=False,
        create_constraint=False,
        length=16,
        values_callable=lambda members: [member.value for member in members],
    )


class Base(DeclarativeBase):
    """What all tables have in common."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        int: BigInteger,
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON,
    }


class Job(Base):
    """A job."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("jobs_newest", "created", "id"),
        Index("jobs_by_state", "state", "created", "id"),
        _part("jobs_open", "priority", "created", "id", where="state IN ('queued', 'running')"),
        _part("jobs_expire", "expires", where="state IN ('queued', 'running')"),
        Index("jobs_delete", "delete_at"),
        Index("jobs_ended", "ended"),
    )

    id: Mapped[str] = mapped_column(String(MAX_ID_LENGTH), primary_key=True)
    version: Mapped[int]
    """Grows with every change that a client can see."""
    state: Mapped[State] = mapped_column(_values(State))
    request_id: Mapped[str | None] = mapped_column(String(36), unique=True)
    request_hash: Mapped[str | None] = mapped_column(String(64))
    """Of the request's content; the same request_id with another one is refused."""
    parameters: Mapped[dict[str, Any]]
    """`smalti.services.gateway.jobs.spec.Parameters`."""
    given: Mapped[list[Any]]
    """The image tokens of the rows that are kept of an initial picture."""
    priority: Mapped[int] = mapped_column(SmallInteger)
    labels: Mapped[dict[str, Any]]
    created: Mapped[int]
    started: Mapped[int | None]
    ended: Mapped[int | None]
    expires: Mapped[int]
    retention: Mapped[int]
    """How long it is kept after its end."""
    delete_at: Mapped[int | None]
    """When it is deleted; set once it has ended."""
    candidates: Mapped[int]
    rows: Mapped[int]
    """Rows of tiles to draw, over all candidates."""
    rows_drawn: Mapped[int]
    drawn: Mapped[int]
    """Candidates whose tokens are complete; and so on."""
    decoded: Mapped[int]
    ranked: Mapped[int]
    encoded: Mapped[bool] = mapped_column(Boolean)
    reading: Mapped[dict[str, Any] | None]
    """`smalti.messages.Reading`."""
    lease: Mapped[int]
    """The number of the last lease; every sending has its own."""
    error: Mapped[bytes | None] = mapped_column(LargeBinary)
    """`google.rpc.Status`, of a job that has failed."""
    trace: Mapped[dict[str, Any] | None]
    """`smalti.messages.Trace`, of the call that made it."""


class Label(Base):
    """A label of a job, to find jobs by; the job has them all as well."""

    __tablename__ = "labels"
    __table_args__ = (Index("labels_by_value", "key", "value", "job_id"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(63), primary_key=True)
    value: Mapped[str] = mapped_column(String(256))


class Chunk(Base):
    """Candidates of a job that travel together: `count` from `first` on."""

    __tablename__ = "chunks"
    __table_args__ = (
        _part("chunks_waiting", "priority", "created", "job_id", "number", where="state = 'waiting'"),
        _part("chunks_leased", "deadline", "job_id", "count", where="state = 'leased'"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    priority: Mapped[int] = mapped_column(SmallInteger)
    """The job's, and `created` too: the order in which chunks are sent."""
    created: Mapped[int]
    first: Mapped[int]
    count: Mapped[int] = mapped_column(SmallInteger)
    state: Mapped[ChunkState] = mapped_column(_values(ChunkState))
    reached: Mapped[int] = mapped_column(SmallInteger)
    """`Reached`."""
    rows_drawn: Mapped[int] = mapped_column(SmallInteger)
    """Of each of its candidates."""
    lease: Mapped[int]
    """Under which it was sent last; 0 before."""
    deadline: Mapped[int | None]
    """When the lease runs out."""
    sent: Mapped[bool] = mapped_column(Boolean)
    """Whether the broker has confirmed it under this lease."""
    heard: Mapped[bool] = mapped_column(Boolean)
    """Whether a stage has said anything of it under this lease. If not, perhaps there was nobody to begin it."""
    losses: Mapped[int] = mapped_column(SmallInteger)
    """How often it was sent, and its lease has run out."""
    attempts: Mapped[int] = mapped_column(SmallInteger)
    """How often it was begun in vain."""
    problem: Mapped[str | None] = mapped_column(Text)
    """Why, the last time, where that is known."""


class Picture(Base):
    """A candidate that has been ranked."""

    __tablename__ = "pictures"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    candidate: Mapped[int] = mapped_column(primary_key=True)
    """Its index."""
    rank: Mapped[int | None] = mapped_column(SmallInteger)
    """Its place among the pictures of the job; None for one that is not among the best, or not yet."""
    score: Mapped[float] = mapped_column(Float(53))
    width: Mapped[int]
    height: Mapped[int]
    size: Mapped[int]
    """In bytes."""
    sha256: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(Text)


class Task(Base):
    """A chore: what is to be done in the object store for a job, which may be deleted already."""

    __tablename__ = "chores"
    __table_args__ = (Index("chores_due", "due"),)

    job_id: Mapped[str] = mapped_column(String(MAX_ID_LENGTH), primary_key=True)
    chore: Mapped[Chore] = mapped_column(_values(Chore), primary_key=True)
    due: Mapped[int]
    state: Mapped[State] = mapped_column(_values(State))
    """How the job has ended."""
    chunks: Mapped[int]
    """How many chunks it had."""
    tries: Mapped[int] = mapped_column(SmallInteger)
