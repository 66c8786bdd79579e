"""Applies the stages' events to shards.

As for chunks, a *done* event counts under any lease, whoever has done the work, and a *failed* event only under the
current one.
"""

import logging

from sqlalchemy import select

from smalti.batches import BatchKeys, ShardRange
from smalti.messages import Failed, FailureReason, Message, ShardProgress, ShardReport, Stage, StageDone
from smalti.service import failpoints
from smalti.services.gateway.batches.lifecycle import (
    DRAWING_STATES,
    lease_end,
    leased,
    lock,
    lock_drawn,
)
from smalti.services.gateway.batches.shards.completing import Results, complete
from smalti.services.gateway.batches.shards.halving import Halving
from smalti.services.gateway.batches.shards.messages import REACHED, ShardName, is_shard, shard_of
from smalti.services.gateway.batches.shards.progress import ShardProgressBuffer
from smalti.services.gateway.batches.signals import BatchSignals
from smalti.services.gateway.batches.spec import range_of
from smalti.services.gateway.database.clock import to_microseconds
from smalti.services.gateway.database.tables import (
    ChunkProgress,
    Shard,
    ShardState,
)
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.storage import JobKeys

log = logging.getLogger(__name__)


class ShardEvents:
    """Handles events of shards; thread-safe."""

    def __init__(
        self,
        context: GatewayContext,
        signals: BatchSignals,
        *,
        halving: Halving,
        progress: ShardProgressBuffer,
    ) -> None:
        """Creates the handler.

        Args:
            context: shared by the parts of the gateway.
            signals: told of what changes.
            halving: halves shards that crash their workers.
            progress: receives progress, which may be stored later.
        """
        self._context = context
        self._database = context.database
        self._signals = signals
        self._halving = halving
        self._progress = progress

    def apply(self, message: Message) -> bool:
        """Applies an event if it is of a shard; returns whether it is.

        Raises:
            UnavailableError: the database or the store does not answer; the event must be delivered again.
        """
        name = shard_of(message.job)
        if name is None:
            return False
        match message:
            case StageDone(shard=ShardReport() as report):
                self._done(name, report)
            case StageDone() if message.stage in REACHED:
                self._reached(name, message)
            case ShardProgress():
                self._progress.add(name, message)
            case Failed():
                self._failed(name, message)
            case _:
                log.error("unexpected event: %s of %s", message.work_key[1], message.job)
        return True

    def _done(self, name: ShardName, report: ShardReport) -> None:
        now = self._context.clock()
        with self._database.write() as session:
            batch = lock(session, name.batch_id)
            shard = session.scalars(select(Shard).where(*is_shard(name)).with_for_update()).one_or_none()
            if batch is None or shard is None or batch.state not in DRAWING_STATES:
                return
            if shard.state not in (ShardState.WAITING, ShardState.LEASED):
                return  # It is done already, or its halves are drawn.
            if report.part.name != BatchKeys(batch.id).part(range_of(shard)):
                log.error("the report of shard %s names %s", range_of(shard).name, report.part.key)
                return
            results = Results(
                sha256=report.part.sha256,
                drawn=report.drawn,
                failed=report.failed,
                candidates=report.candidates,
                pictures=report.pictures,
                size=report.bytes,
            )
            is_last = complete(session, batch, shard, results, now)
        failpoints.reach(
            "gateway.after-shard-done", job=BatchKeys(batch.id).job(range_of(shard)), batch=batch.name
        )
        self._signals.tell_shard(
            name.batch_id, "done", drawn=report.drawn, failed=report.failed, is_last=is_last
        )

    def _reached(self, name: ShardName, event: StageDone) -> None:
        """Notes that a stage has finished a shard, which then waits for the next one."""
        now = self._context.clock()
        with self._database.write() as session:
            shard = session.scalars(select(Shard).where(*is_shard(name)).with_for_update()).one_or_none()
            if shard is None or shard.state is not ShardState.LEASED:
                return
            if event.lease != shard.lease and shard.binding:
                return  # It may be of the revision that the shard is not bound to any more.
            shard.reached = max(shard.reached, REACHED[event.stage])
            if shard.reached >= ChunkProgress.GENERATED:
                shard.generated = shard.candidates
            shard.sent, shard.begun = True, False
            shard.deadline = lease_end(self._context.settings, shard, now)
        if event.stage is Stage.GENERATE:
            self._signals.to_send.set()

    def _failed(self, name: ShardName, event: Failed) -> None:
        with self._database.read() as session:
            shard = session.scalars(select(Shard).where(*is_shard(name))).one_or_none()
        if shard is None or shard.state is not ShardState.LEASED or shard.lease != event.lease:
            return  # It was sent again since, or is done.
        shard_range = range_of(shard)
        log.warning(
            "shard %s of batch %s has failed: %s: %s",
            shard_range.name,
            name.batch_id,
            event.reason,
            event.detail,
        )
        problem = f"{event.stage}: {event.detail}"
        match event.reason:
            case FailureReason.POISON | FailureReason.INVALID | FailureReason.MODEL:
                self._halving.give_up(name.batch_id, shard_range, event.lease, problem)
            case FailureReason.INPUTS:
                if not self._halving.end_if_lost(name.batch_id, shard_range, event.lease):
                    self._send_later(name.batch_id, shard_range, event.lease, problem)
            case FailureReason.EXHAUSTED:
                self._send_later(name.batch_id, shard_range, event.lease, problem)
            case FailureReason.CANCELLED | FailureReason.EXPIRED:
                self._send_anew(name.batch_id, shard_range, event)

    def _send_later(self, batch_id: str, shard: ShardRange, lease: int, problem: str) -> None:
        """Shortens the lease of a shard that a stage has given up; what is lost then counts as a failed attempt."""
        now = self._context.clock()
        with self._database.write() as session:
            row = session.scalars(leased(batch_id, shard, lease).with_for_update()).one_or_none()
            if row is not None:
                row.sent = row.begun = True
                row.deadline = to_microseconds(now + self._context.settings.retry * 2.0**row.attempts)
                row.problem = problem

    def _send_anew(self, batch_id: str, shard: ShardRange, event: Failed) -> None:
        """Sends a shard again whose batch goes on: its message was old, or a marker was in the way."""
        if event.reason is FailureReason.CANCELLED:
            self._context.store.delete(JobKeys(event.job).cancelled)
        with self._database.write() as session:
            if found := lock_drawn(session, batch_id, shard, event.lease):
                row = found[1]
                row.state, row.deadline = ShardState.WAITING, None
        self._signals.to_send.set()
