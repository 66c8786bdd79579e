"""Shards that have results: they count, and after the last one the batch is finished."""

from dataclasses import dataclass

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from smalti.services.gateway.batches.lifecycle import add_store_task, begin_finishing, note_rate, touch
from smalti.services.gateway.database.tables import Batch, BatchState, Shard, ShardState, StoreAction


@dataclass(frozen=True, kw_only=True)
class Results:
    """What has become of the prompts of a shard."""

    sha256: str
    """SHA-256 of the file with the results."""
    drawn: int = 0
    failed: int = 0
    """Prompts without pictures, with the invalid ones."""
    candidates: int = 0
    pictures: int = 0
    size: int = 0
    """Bytes of the file with the pictures."""


def complete(session: Session, batch: Batch, shard: Shard, results: Results, now: float) -> bool:
    """Marks a shard as done.

    Args:
        session: a writing transaction.
        batch: its batch, locked, RUNNING or PAUSED.
        shard: the shard, WAITING or LEASED.
        results: what has become of its prompts.
        now: the time in seconds.

    Returns:
        Whether the batch has no shards left to draw, and is to be finished.
    """
    # A copy of its message may still wait, or be worked on: the broker can deliver it twice under any lease.
    add_store_task(session, batch, shard, StoreAction.END_SHARD, now)
    shard.state, shard.deadline, shard.problem = ShardState.DONE, None, None
    shard.results = results.sha256
    batch.drawn += results.drawn
    batch.failed += max(0, results.failed - shard.invalid)
    batch.pictures += results.pictures
    batch.size += results.size
    batch.candidates_generated += results.candidates
    session.flush()
    if not _is_open(session, shard):
        batch.shards_ended += 1
    note_rate(batch, now)
    if batch.shards_ended >= batch.shards:
        begin_finishing(batch, BatchState.SUCCEEDED, now)
        return True
    touch(batch)
    return False


def _is_open(session: Session, shard: Shard) -> bool:
    """Returns whether other parts of a shard that was halved are not done."""
    if not shard.part:
        return False
    of_shard = Shard.batch_id == shard.batch_id, Shard.number == shard.number
    is_open = Shard.state.in_((ShardState.WAITING, ShardState.LEASED))
    return bool(session.scalar(select(exists().where(*of_shard, is_open))))
