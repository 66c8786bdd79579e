"""Changes of a batch within a transaction: what may happen to it in each state, and its end, once.

A transaction locks the batch's row before it changes shards, so that two cannot deadlock.
"""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Select, insert, select, update
from sqlalchemy.orm import Session, object_session

from smalti.batches import BatchKeys, BatchPrompt, ShardRange
from smalti.errors import WrongStateError
from smalti.rpc.errors import status_of
from smalti.rpc.reasons import reason_of
from smalti.services.gateway.batches.announcing import announce_end
from smalti.services.gateway.batches.signals import BatchOutcome
from smalti.services.gateway.batches.spec import range_of
from smalti.services.gateway.database.clock import MICROSECONDS, to_microseconds, to_seconds
from smalti.services.gateway.database.commit import notify_at_commit
from smalti.services.gateway.database.tables import (
    IS_LEASED_SHARD,
    OPEN_BATCH_STATES,
    Batch,
    BatchState,
    JobState,
    Shard,
    ShardState,
    StoreAction,
    StoreTask,
)
from smalti.services.gateway.settings import GatewaySettings

DRAWING_STATES: Final = (BatchState.RUNNING, BatchState.PAUSED)
"""The states in which results of shards count."""
MAX_DOUBLINGS: Final = 4
"""Number of times that the length of a lease can double."""
RATE_SECONDS: Final = 15.0
"""Time between two measurements of the rate."""
RATE_WINDOW_SECONDS: Final = 600.0
"""Time for which measurements are kept."""


def lock(session: Session, batch_id: str, *, skip_locked: bool = False) -> Batch | None:
    """Locks a batch until the transaction ends; returns None if there is none, or if it is skipped."""
    query = select(Batch).where(Batch.id == batch_id).with_for_update(skip_locked=skip_locked)
    return session.scalars(query).one_or_none()


def leased(batch_id: str, shard: ShardRange, lease: int) -> Select[Shard]:
    """Returns the query of a shard, if it still has a lease."""
    return select(Shard).where(
        Shard.batch_id == batch_id,
        Shard.number == shard.number,
        Shard.start == shard.start,
        Shard.count == shard.count,
        Shard.lease == lease,
        IS_LEASED_SHARD,
    )


def lock_drawn(session: Session, batch_id: str, shard: ShardRange, lease: int) -> tuple[Batch, Shard] | None:
    """Locks a batch, and a shard of it; returns None if the batch does not draw, or the lease has ended."""
    batch = lock(session, batch_id)
    row = session.scalars(leased(batch_id, shard, lease).with_for_update()).one_or_none()
    if batch is None or row is None or batch.state not in DRAWING_STATES:
        return None
    return batch, row


def lease_end(settings: GatewaySettings, shard: Shard, now: float) -> int:
    """Returns when a lease that begins now ends, in microseconds: soon if a worker says that it works on the shard."""
    if shard.begun:
        return to_microseconds(now + settings.lease)
    return to_microseconds(now + settings.shard_lease * 2.0 ** min(shard.losses, MAX_DOUBLINGS))


def touch(batch: Batch) -> None:
    """Gives a locked batch a new version, since clients can see a change; the other gateways are notified of it."""
    batch.version += 1
    if session := object_session(batch):
        notify_at_commit(session, batch.id)


def is_planned(batch: Batch) -> bool:
    """Returns whether the input of a batch was checked and cut."""
    return batch.planned is not None


def pause(batch: Batch) -> None:
    """Lets no further shards of a locked batch begin; nothing changes if none are left to begin.

    Raises:
        WrongStateError: it has ended.
    """
    _check_open(batch)
    if batch.state in (BatchState.PLANNING, BatchState.RUNNING):
        batch.state = BatchState.PAUSED
        touch(batch)


def resume(batch: Batch) -> None:
    """Goes on with a locked batch that was paused; raises as `pause` does."""
    _check_open(batch)
    if batch.state is BatchState.PAUSED:
        batch.state = BatchState.RUNNING if is_planned(batch) else BatchState.PLANNING
        touch(batch)


def stop(session: Session, batch: Batch, state: BatchState, now: float) -> BatchOutcome | None:
    """Ends a locked, open batch before it is complete; what is drawn stays, and its manifest is written first.

    Args:
        session: a writing transaction.
        batch: the batch.
        state: CANCELLED or EXPIRED.
        now: the time in seconds.

    Returns:
        The outcome if it has ended at once, since nothing can be drawn yet.
    """
    if not is_planned(batch):
        return end(session, batch, state, now)
    if batch.state is BatchState.FINISHING:
        # Everything is drawn, or it was ended before. A complete batch may have its mark already.
        return None
    drop_leased(session, batch, now)
    begin_finishing(batch, state, now)
    return None


def begin_finishing(batch: Batch, ending: BatchState, now: float) -> None:
    """Sets a locked batch to FINISHING: no shards of it are drawn any more."""
    batch.state, batch.ending = BatchState.FINISHING, ending
    batch.finishing = to_microseconds(now)
    batch.owner = batch.owned_until = batch.trouble = None
    touch(batch)


def end(
    session: Session, batch: Batch, state: BatchState, now: float, *, error: BaseException | None = None
) -> BatchOutcome:
    """Ends a locked, open batch.

    Args:
        session: a writing transaction.
        batch: the batch.
        state: its final state.
        now: the time in seconds.
        error: why it failed.

    Returns:
        The outcome, for `BatchSignals.ended` once the transaction is committed.
    """
    moment = to_microseconds(now)
    reason = reason_of(error).name if error is not None else ""
    drop_leased(session, batch, now)
    batch.state, batch.ending = state, None
    batch.ended = moment
    batch.delete_at = moment + batch.retention
    batch.clean_at = moment
    batch.owner = batch.owned_until = batch.trouble = batch.cursor = None
    batch.fence += 1
    if error is not None:
        batch.error = status_of(error, during=f"batch {batch.id}").SerializeToString()
    touch(batch)
    announce_end(session, batch, reason)
    return BatchOutcome(
        batch_id=batch.id, state=state, reason=reason, seconds=to_seconds(moment - batch.created)
    )


def new_shard(
    batch_id: str, shard: ShardRange, prompts: Sequence[BatchPrompt], sha256: str
) -> dict[str, Any]:
    """Returns the row of a shard, or of a part of one, that waits.

    Args:
        batch_id: its batch.
        shard: which prompts it has.
        prompts: these prompts.
        sha256: SHA-256 of the file with the prompts of the whole shard.
    """
    return {
        "batch_id": batch_id,
        "number": shard.number,
        "start": shard.start,
        "count": shard.count,
        "part": shard.part,
        "state": ShardState.WAITING,
        "candidates": sum(prompt.candidates for prompt in prompts if prompt.problem is None),
        "invalid": sum(prompt.invalid for prompt in prompts),
        "sha256": sha256,
    }


def drop_leased(session: Session, batch: Batch, now: float) -> None:
    """Drops the shards of a batch that are in the queues, and has their stages told; waiting ones stay as they are."""
    of_batch = Shard.batch_id == batch.id, IS_LEASED_SHARD
    for shard in session.scalars(select(Shard).where(*of_batch)):
        add_store_task(session, batch, shard, StoreAction.WRITE_MARKER, now)
    session.execute(update(Shard).where(*of_batch).values(state=ShardState.DROPPED, deadline=None))


def add_store_task(session: Session, batch: Batch, shard: Shard, action: StoreAction, now: float) -> None:
    """Adds a task in the object store for a shard, which is a job of its own there."""
    job = BatchKeys(batch.id).job(range_of(shard))
    if session.get(StoreTask, (job, action)) is not None:
        return
    row = {
        "job_id": job,
        "action": action,
        "due": to_microseconds(now),
        "state": JobState.CANCELLED,
        "chunks": 0,
        "varied": False,
        "tries": 0,
        "keys": [],
    }
    session.execute(insert(StoreTask), [row])


def note_rate(batch: Batch, now: float) -> None:
    """Notes how many prompts of a locked batch have ended by now, from which its rate follows."""
    moment = to_microseconds(now)
    kept = [each for each in batch.rates or [] if moment - each[0] <= RATE_WINDOW_SECONDS * MICROSECONDS]
    measured = [moment, batch.drawn + batch.failed]
    # Of measurements that are close together, the first and the last are kept.
    if len(kept) > 1 and kept[-1][0] - kept[-2][0] < RATE_SECONDS * MICROSECONDS:
        kept.pop()
    batch.rates = [*kept, measured]


def _check_open(batch: Batch) -> None:
    if batch.state not in OPEN_BATCH_STATES:
        raise WrongStateError(f"batch {batch.id} has ended ({batch.state.value}); create another one")
