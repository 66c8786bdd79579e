"""What becomes due for batches: they expire, what their drawing has left is deleted, and in the end they are."""

import logging
from collections.abc import Callable
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from smalti.batches import BatchKeys, BatchSummary
from smalti.errors import DamagedObjectError, MissingObjectError
from smalti.services.gateway.batches.lifecycle import lock, stop
from smalti.services.gateway.batches.shards import messages_end
from smalti.services.gateway.batches.signals import BatchSignals
from smalti.services.gateway.database.clock import to_microseconds
from smalti.services.gateway.database.tables import (
    IS_OPEN_BATCH,
    OPEN_BATCH_STATES,
    Batch,
    BatchState,
    Shard,
    StoreTask,
)
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.lifecycle import LATE_SECONDS
from smalti.services.gateway.jobs.objects import write_marker
from smalti.storage import JobKeys, ObjectStore

log = logging.getLogger(__name__)

ROWS_TOGETHER: Final = 1000
"""Shards that one transaction deletes."""
KEYS_TOGETHER: Final = 1000
BATCHES_TOGETHER: Final = 20


class BatchCleaner:
    """Does what is due; one thread per gateway."""

    def __init__(self, context: GatewayContext, signals: BatchSignals) -> None:
        self._context = context
        self._database = context.database
        self._store = context.store
        self._signals = signals
        self._clock = context.clock

    def expire(self) -> int:
        """Ends batches that have exceeded their time limit; returns how many."""
        now = self._clock()
        states = BatchState.PLANNING, BatchState.RUNNING, BatchState.PAUSED
        late = Batch.state.in_(states), Batch.expires <= to_microseconds(now)
        with self._database.read() as session:
            found = session.scalars(select(Batch.id).where(IS_OPEN_BATCH, *late)).all()
        for batch_id in found:
            with self._database.write() as session:
                batch = lock(session, batch_id)
                if batch is None or batch.state not in states:
                    continue
                outcome = stop(session, batch, BatchState.EXPIRED, now)
            if outcome is not None:
                self._signals.ended(outcome)
            self._signals.changed(batch_id)
            self._signals.to_finish.set()
            self._signals.to_clean.set()
        return len(found)

    def clean(self) -> None:
        """Deletes what batches that have ended do not need any more, and batches whose retention is over.

        Raises:
            UnavailableError: the database or the store does not answer; it is done later.
        """
        moment = to_microseconds(self._clock())
        with self._database.read() as session:
            to_delete = session.scalars(
                select(Batch)
                .where(Batch.delete_at.is_not(None), Batch.delete_at <= moment)
                .limit(BATCHES_TOGETHER)
            ).all()
            to_clean = session.scalars(
                select(Batch)
                .where(Batch.clean_at.is_not(None), Batch.clean_at <= moment)
                .limit(BATCHES_TOGETHER)
            ).all()
        gone = {batch.id for batch in to_delete}
        for batch in to_delete:
            self._remove(batch)
        for batch in to_clean:
            if batch.id not in gone:
                self._clean(batch)

    def _clean(self, batch: Batch) -> None:
        """Deletes shards, parts and intermediate objects; once more when no stage can write any more."""
        if batch.state in OPEN_BATCH_STATES:
            return
        is_late = self._is_late(batch)
        keys = BatchKeys(batch.id)
        self._write_markers(batch.id)
        self._delete_rows(batch.id)
        self._delete(f"{keys.folder}shards/")
        self._delete(f"{keys.folder}parts/")
        self._delete_intermediate(batch.id, with_markers=is_late)
        try:
            summary = BatchSummary.parse(keys.summary, self._store.get(keys.summary))
        except MissingObjectError:
            pass  # Nothing was drawn.
        except DamagedObjectError as error:
            log.warning("what its drawing has left stays: %s", error, extra={"batch": batch.id})
        else:
            delete_strays(self._store, keys, summary)
        with self._database.write() as session:
            locked = lock(session, batch.id)
            if locked is not None:
                locked.clean_at = None if is_late else _late_at(batch)

    def _remove(self, batch: Batch) -> None:
        if batch.state in OPEN_BATCH_STATES:
            return
        is_late = self._is_late(batch)
        self._write_markers(batch.id)
        self._delete_rows(batch.id)
        self._delete(BatchKeys(batch.id).folder)
        self._delete_intermediate(batch.id, with_markers=is_late)
        with self._database.write() as session:
            locked = lock(session, batch.id)
            if locked is None:
                return
            if is_late:
                session.delete(locked)
            else:
                # A stage may still write; what is left is deleted then.
                locked.removed = True
                locked.clean_at, locked.delete_at = None, _late_at(batch)
                locked.request_id = None
        self._signals.changed(batch.id)
        log.info("batch %s is deleted", batch.id)

    def _is_late(self, batch: Batch) -> bool:
        return to_microseconds(self._clock()) >= _late_at(batch)

    def _write_markers(self, batch_id: str) -> None:
        """Writes the markers of shards that are due: once their records are deleted, only they stop late stages."""
        of_batch = StoreTask.job_id.startswith(f"{batch_id}-", autoescape=True)
        with self._database.read() as session:
            tasks = session.execute(select(StoreTask.job_id, StoreTask.state).where(of_batch)).all()
        for job_id, state in tasks:
            write_marker(self._store, job_id, state)

    def _delete_rows(self, batch_id: str) -> None:
        while True:
            with self._database.write() as session:
                if not _delete_some(session, batch_id):
                    return

    def _delete_intermediate(self, batch_id: str, *, with_markers: bool) -> None:
        """Deletes the objects of the stages; without the markers, which stop stages that are late."""

        def is_useless(key: str) -> bool:
            job = key.split("/")[1]
            return with_markers or key != JobKeys(job).cancelled

        # The ids of shards begin with that of the batch.
        self._delete(f"jobs/{batch_id}-", is_useless)

    def _delete(self, prefix: str, which: Callable[[str], bool] = lambda key: True) -> None:
        _delete_objects(self._store, prefix, which)


def delete_strays(store: ObjectStore, keys: BatchKeys, summary: BatchSummary) -> None:
    """Deletes tars of the output that the summary does not name: of shards that were halved, or dropped, meanwhile."""
    named = {f"{keys.prefix}{name}" for name in summary.shards}
    _delete_objects(store, keys.prefix, lambda key: key.endswith(".tar") and key not in named)


def _delete_objects(store: ObjectStore, prefix: str, which: Callable[[str], bool]) -> None:
    keys: list[str] = []
    for info in store.objects(prefix):
        if which(info.key):
            keys.append(info.key)
        if len(keys) == KEYS_TOGETHER:
            store.delete(*keys)
            keys.clear()
    if keys:
        store.delete(*keys)


def _late_at(batch: Batch) -> int:
    """Returns when no stage can write objects of an ended batch any more."""
    return messages_end(batch) + to_microseconds(LATE_SECONDS)


def _delete_some(session: Session, batch_id: str) -> int:
    numbers = select(Shard.number).where(Shard.batch_id == batch_id).order_by(Shard.number)
    last = session.scalars(numbers.limit(ROWS_TOGETHER)).all()
    if not last:
        return 0
    session.execute(delete(Shard).where(Shard.batch_id == batch_id, Shard.number <= last[-1]))
    return len(last)
