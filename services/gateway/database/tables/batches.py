"""Batches, and their shards."""

from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Boolean, ForeignKey, Index, LargeBinary, SmallInteger, String, Text, false, text
from sqlalchemy.orm import Mapped, mapped_column

from smalti.services.gateway.database.columns import ReadableEnum, ReadableJson
from smalti.services.gateway.database.tables.base import (
    DEFAULT_TENANT,
    MAX_ID_LENGTH,
    MAX_REVISION_LENGTH,
    Base,
    partial_index,
)

MAX_NAME_LENGTH: Final = 200


class BatchState(StrEnum):
    """State of a batch."""

    PLANNING = "planning"
    """Its input is read and checked."""
    RUNNING = "running"
    PAUSED = "paused"
    """No further shards are sent. Its planning, if that is not done, goes on."""
    FINISHING = "finishing"
    """No shards are left; its manifest is written."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


OPEN_BATCH_STATES: Final = (
    BatchState.PLANNING,
    BatchState.RUNNING,
    BatchState.PAUSED,
    BatchState.FINISHING,
)
"""The states of an open batch. It leaves them once, for one of the others, which are final."""


class ShardState(StrEnum):
    """State of a shard."""

    WAITING = "waiting"
    """Not sent yet."""
    LEASED = "leased"
    """Sent, or about to be. It is sent again when its lease expires."""
    DONE = "done"
    """There are results of all its prompts."""
    HALVED = "halved"
    """Its halves are rows of their own, since it has crashed its workers or failed too often."""
    DROPPED = "dropped"
    """Its batch ended without it."""


# Literals, since a partial index is used only if the query repeats its predicate literally.
IS_OPEN_BATCH: Final = text("batches.state IN ('planning', 'running', 'paused', 'finishing')")
IS_WAITING_SHARD: Final = text("shards.state = 'waiting'")
IS_LEASED_SHARD: Final = text("shards.state = 'leased'")


class Batch(Base):
    """A file of prompts that is drawn."""

    __tablename__ = "batches"
    __table_args__ = (
        Index("batches_newest", "created", "id"),
        Index("batches_of_tenant", "tenant", "created", "id"),
        Index("batches_requests", "tenant", "request_id", unique=True),
        partial_index(
            "batches_open", "state", "id", where="state IN ('planning', 'running', 'paused', 'finishing')"
        ),
        partial_index("batches_delete", "delete_at", where="delete_at IS NOT NULL"),
        partial_index("batches_clean", "clean_at", where="clean_at IS NOT NULL"),
    )

    id: Mapped[str] = mapped_column(String(MAX_ID_LENGTH), primary_key=True)
    version: Mapped[int]
    """Grows with every change that a client can see."""
    state: Mapped[BatchState] = mapped_column(ReadableEnum(BatchState))
    ending: Mapped[BatchState | None] = mapped_column(ReadableEnum(BatchState))
    """The final state of a batch that is FINISHING."""
    tenant: Mapped[str] = mapped_column(String(MAX_ID_LENGTH), default=DEFAULT_TENANT)
    request_id: Mapped[str | None] = mapped_column(String(36))
    request_hash: Mapped[str | None] = mapped_column(String(64))
    """Hash of the request's content. A request with the same request_id and another hash is refused."""
    name: Mapped[str] = mapped_column(String(MAX_NAME_LENGTH), default="")
    labels: Mapped[dict[str, Any]]
    parameters: Mapped[dict[str, Any]]
    """`smalti.services.gateway.batches.spec.BatchParameters` as JSON."""
    input_file: Mapped[str | None] = mapped_column(String(MAX_ID_LENGTH))
    """The uploaded file that is its input, which is kept until it has ended; None for another object."""
    model: Mapped[str] = mapped_column(String(MAX_REVISION_LENGTH))
    revision: Mapped[str] = mapped_column(String(MAX_REVISION_LENGTH))
    """The revision of the model that the batch is bound to."""
    pinned: Mapped[bool] = mapped_column(Boolean, default=False)
    """Whether the request has named the revision, so that no shard is ever bound to another."""
    rank: Mapped[int] = mapped_column(SmallInteger, default=0)
    """Of the batches of a tenant, those with the highest rank are drawn first."""
    slots: Mapped[int | None]
    """Candidates that may be generated at the same time; None without a limit."""
    validate_only: Mapped[bool] = mapped_column(Boolean, default=False)
    created: Mapped[int]
    planned: Mapped[int | None]
    """Time at which the input was checked and cut; None before."""
    started: Mapped[int | None]
    """Time at which the first shard was sent."""
    finishing: Mapped[int | None]
    """Time at which it became FINISHING."""
    ended: Mapped[int | None]
    expires: Mapped[int]
    retention: Mapped[int]
    """Time for which the batch is kept after its end, in microseconds."""
    delete_at: Mapped[int | None]
    """Time at which its files, then its rows, are deleted; set when it ends."""
    clean_at: Mapped[int | None]
    """Time at which what its drawing has left is deleted: its shards, their results, and intermediate objects."""
    removed: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    """Whether it is deleted for its owner; what is left of it is deleted at `delete_at`."""
    prompts: Mapped[int] = mapped_column(default=0)
    """Rows of the input, without blank ones."""
    blank: Mapped[int] = mapped_column(default=0)
    invalid: Mapped[int] = mapped_column(default=0)
    drawn: Mapped[int] = mapped_column(default=0)
    """Prompts that are drawn."""
    failed: Mapped[int] = mapped_column(default=0)
    candidates: Mapped[int] = mapped_column(default=0)
    """Candidates to generate."""
    candidates_generated: Mapped[int] = mapped_column(default=0)
    """Candidates of the shards that are done."""
    pictures_planned: Mapped[int] = mapped_column(default=0)
    pictures: Mapped[int] = mapped_column(default=0)
    """Pictures that are written."""
    size: Mapped[int] = mapped_column("bytes", default=0)
    """Bytes of the files with pictures."""
    shards: Mapped[int] = mapped_column(default=0)
    shards_ended: Mapped[int] = mapped_column(default=0)
    """Shards whose prompts all have a result; the halves of one count together."""
    rates: Mapped[list[Any] | None] = mapped_column(ReadableJson(none_as_null=True))
    """Times of the last minutes, each with the prompts that had ended by then."""
    owner: Mapped[str | None] = mapped_column(String(36))
    """The gateway that plans or finishes it."""
    owned_until: Mapped[int | None]
    """Time until which it does so, and no other gateway."""
    fence: Mapped[int] = mapped_column(default=0)
    """Grows with every claim; what a gateway stores under an earlier one does not count."""
    cursor: Mapped[dict[str, Any] | None]
    """What its planning goes on from."""
    webhook: Mapped[dict[str, Any] | None]
    """As in a job."""
    output_file: Mapped[str | None] = mapped_column(String(MAX_ID_LENGTH))
    """For an input of the Batch API of OpenAI, the file with the answers."""
    error_file: Mapped[str | None] = mapped_column(String(MAX_ID_LENGTH))
    error: Mapped[bytes | None] = mapped_column(LargeBinary)
    """Serialized `google.rpc.Status` of a failed batch."""
    trouble: Mapped[str | None] = mapped_column(Text)
    """Why it does not go on; None while it does."""
    trace: Mapped[dict[str, Any] | None]


class Shard(Base):
    """Prompts of a batch that travel together: a shard, or a part of one that was halved."""

    __tablename__ = "shards"
    __table_args__ = (
        partial_index("shards_waiting", "batch_id", "number", "start", where="state = 'waiting'"),
        partial_index("shards_leased", "deadline", "batch_id", where="state = 'leased'"),
    )

    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    start: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    """The first of its prompts in the shard."""
    count: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    part: Mapped[bool] = mapped_column(Boolean, default=False)
    """Whether the shard was halved, and this is a part of it."""
    state: Mapped[ShardState] = mapped_column(ReadableEnum(ShardState))
    reached: Mapped[int] = mapped_column(SmallInteger, default=0)
    """A `ChunkProgress`."""
    candidates: Mapped[int]
    """Candidates of its prompts."""
    invalid: Mapped[int] = mapped_column(SmallInteger, default=0)
    """Its prompts that cannot be used."""
    generated: Mapped[int] = mapped_column(default=0)
    """Candidates that its generator has reported."""
    sha256: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the shard's file of prompts."""
    lease: Mapped[int] = mapped_column(default=0)
    """Number of the last lease; 0 before the first."""
    revision: Mapped[str | None] = mapped_column(String(MAX_REVISION_LENGTH))
    """The revision of the model that draws it; None before the first lease."""
    binding: Mapped[int] = mapped_column(SmallInteger, default=0)
    """How often it was bound to another revision after it had been sent."""
    slots: Mapped[int | None]
    """Candidates that it may have in slots at a time, under this lease; None without a limit."""
    owner: Mapped[str | None] = mapped_column(String(36))
    """The gateway that has made the lease."""
    deadline: Mapped[int | None]
    """Time at which the lease expires."""
    sent: Mapped[bool] = mapped_column(Boolean, default=False)
    """Whether the broker has confirmed the message of this lease."""
    begun: Mapped[bool] = mapped_column(Boolean, default=False)
    """Whether a worker is known to have begun a stage under this lease, and not to have finished it."""
    losses: Mapped[int] = mapped_column(SmallInteger, default=0)
    attempts: Mapped[int] = mapped_column(SmallInteger, default=0)
    """Number of failed attempts."""
    problem: Mapped[str | None] = mapped_column(Text)
    """Why the last attempt failed, if known."""
    results: Mapped[str | None] = mapped_column(String(64))
    """SHA-256 of the file with the results of its prompts; set when it is done."""
