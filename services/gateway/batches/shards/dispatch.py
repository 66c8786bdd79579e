"""Sends shards to the encoders, and sends them again when their leases expire.

As with chunks, a shard is leased, and the lease is committed, before its message is sent. Whatever fails in between, it
is sent again when the lease expires. One gateway at a time sends, since the window is counted over all shards.
"""

import logging
from collections.abc import Sequence
from typing import Final

from sqlalchemy import select, update

from smalti.batches import BatchKeys
from smalti.messages import EncodeShardTask
from smalti.service import failpoints
from smalti.services.gateway.batches.lifecycle import lease_end, leased, lock, touch
from smalti.services.gateway.batches.shards.choosing import Choice, ShardPicker, revision_for
from smalti.services.gateway.batches.shards.halving import Halving
from smalti.services.gateway.batches.shards.messages import task_of
from smalti.services.gateway.batches.signals import BatchSignals
from smalti.services.gateway.batches.spec import UnreadableBatchError, range_of
from smalti.services.gateway.database.clock import to_microseconds
from smalti.services.gateway.database.tables import (
    IS_LEASED_SHARD,
    IS_OPEN_BATCH,
    IS_WAITING_SHARD,
    Batch,
    BatchState,
    Shard,
    ShardState,
)
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.objects import has_crashed_workers, store_is_writable
from smalti.services.gateway.work.dispatch import SENDING_SECONDS

log = logging.getLogger(__name__)

TOGETHER: Final = 256
"""Shards that are picked, or looked at, together."""


class ShardDispatcher:
    """Sends shards; one thread per gateway."""

    def __init__(self, context: GatewayContext, signals: BatchSignals, halving: Halving) -> None:
        """Creates the dispatcher.

        Args:
            context: shared by the parts of the gateway.
            signals: told of what changes.
            halving: halves shards that have failed too often.
        """
        self._context = context
        self._database = context.database
        self._catalogue = context.catalogue
        self._clock = context.clock
        self._signals = signals
        self._halving = halving
        self._picker = ShardPicker(context)
        self._looked: float | None = None

    def send_waiting(self) -> int:
        """Sends as many waiting shards as there is room for; returns how many.

        Raises:
            BrokerUnavailableError: the broker does not answer; the shards are sent later.
            DatabaseUnavailableError: the database does not answer.
        """
        sent = 0
        while True:
            with self._database.read() as session:
                choices = self._picker.pick(session, limit=TOGETHER)
            now_sent = 0
            for batch_id, group in _by_batch(choices).items():
                try:
                    now_sent += self._send(batch_id, group)
                except UnreadableBatchError as error:
                    self._picker.note_unreadable(batch_id, error)
            sent += now_sent
            if not now_sent or len(choices) < TOGETHER:
                return sent

    def send_again(self) -> int:
        """Resends shards whose leases have expired, and halves those that have failed too often.

        Returns:
            The number of shards whose leases had expired.

        Raises:
            UnavailableError: the database, the store or the broker does not answer.
        """
        self._forgive_own_gap()
        now = to_microseconds(self._clock())
        query = select(Shard).where(IS_LEASED_SHARD, Shard.deadline <= now).order_by(Shard.deadline)
        with self._database.read() as session:
            late = session.scalars(query.limit(TOGETHER)).all()
        if not late:
            return 0
        # While the store cannot be written, nothing of it is anybody's fault, and nothing can be done.
        is_writable = not any(shard.sent for shard in late) or store_is_writable(
            self._context.store, "shards"
        )
        for shard in late:
            self._lose(shard, is_writable=is_writable)
        self._signals.to_send.set()
        return len(late)

    def tell(self) -> None:
        """Tells clients why batches do not go on whose revisions have no workers, and takes it back."""
        running = select(Batch).where(IS_OPEN_BATCH, Batch.state == BatchState.RUNNING)
        with self._database.read() as session:
            batches = session.scalars(running).all()
        for batch in batches:
            try:
                has_workers = revision_for(self._catalogue, batch) is not None
            except UnreadableBatchError as error:
                log.warning("%s", error)
                continue
            trouble = None if has_workers else f"waits for workers of {batch.model} {batch.revision}"
            if batch.trouble != trouble:
                with self._database.write() as session:
                    locked = lock(session, batch.id)
                    if locked is None or locked.state is not BatchState.RUNNING:
                        continue
                    locked.trouble = trouble
                    touch(locked)
                self._signals.changed(batch.id)

    def _send(self, batch_id: str, choices: Sequence[Choice]) -> int:
        with self._database.write() as session:
            batch = lock(session, batch_id)
            if batch is None or batch.state is not BatchState.RUNNING:
                return 0
            waiting = select(Shard).where(Shard.batch_id == batch_id, IS_WAITING_SHARD)
            shards = session.scalars(
                waiting.order_by(Shard.number, Shard.start)
                .limit(len(choices))
                .with_for_update(skip_locked=True)
            ).all()
            tasks = [
                self._lease(batch, shard, choice) for shard, choice in zip(shards, choices, strict=False)
            ]
            begins = bool(tasks) and batch.started is None
            if begins:
                batch.started = to_microseconds(self._clock())
                touch(batch)
        if begins:
            self._signals.changed(batch_id)
        for task in tasks:
            failpoints.reach("gateway.after-shard-lease", job=task.job, batch=batch.name)
            self._publish(task)
            failpoints.reach("gateway.after-shard-publish", job=task.job, batch=batch.name)
        return len(tasks)

    def _lease(self, batch: Batch, shard: Shard, choice: Choice) -> EncodeShardTask:
        """Leases a waiting shard of a locked batch; returns its message."""
        revision = choice.revision.card.revision
        if shard.revision is not None and shard.revision != revision:
            # What the other one has written does not count.
            shard.binding += 1
            shard.reached = 0
        shard.state, shard.revision, shard.slots = ShardState.LEASED, revision, choice.slots
        shard.lease += 1
        shard.owner = self._database.id
        shard.deadline = to_microseconds(self._clock() + SENDING_SECONDS)
        shard.sent = shard.begun = False
        shard.problem = None
        shard.generated = 0
        routes = self._catalogue.fleet.routes(revision)
        return task_of(batch, shard, routes=routes, now=self._clock())

    def _publish(self, task: EncodeShardTask) -> None:
        is_sent = False
        try:
            self._context.publisher.publish(task)
            is_sent = True
        finally:
            self._note(task, is_sent=is_sent)

    def _note(self, task: EncodeShardTask, *, is_sent: bool) -> None:
        """Notes that the broker has confirmed a message, or has not: then the shard is due at once."""
        now = self._clock()
        with self._database.write() as session:
            shard = session.scalars(
                leased(task.batch, task.range, task.lease).with_for_update()
            ).one_or_none()
            if shard is None:
                return  # Its events were faster, or it was dropped.
            if is_sent:
                shard.sent = True
                shard.deadline = max(shard.deadline or 0, lease_end(self._context.settings, shard, now))
            else:
                shard.state, shard.deadline = ShardState.WAITING, None

    def _lose(self, late: Shard, *, is_writable: bool) -> None:
        """Deals with a shard whose lease has expired."""
        job = BatchKeys(late.batch_id).job(range_of(late))
        is_unclear = late.sent and late.begun and late.problem is None
        has_crashed = is_unclear and has_crashed_workers(self._context.store, job)
        given_up = None
        with self._database.write() as session:
            batch = lock(session, late.batch_id)
            shard = session.scalars(
                leased(late.batch_id, range_of(late), late.lease).with_for_update()
            ).one_or_none()
            if batch is None or shard is None:
                return
            now = self._clock()
            if shard.sent and not is_writable:
                shard.deadline = to_microseconds(now + self._context.settings.retry)
                return
            if shard.sent:
                shard.losses += 1
                # What a stage has given up has a problem, and is its own fault.
                shard.attempts += shard.begun and (not has_crashed or shard.problem is not None)
            if shard.attempts >= self._context.settings.attempts:
                given_up = shard.problem or "its worker stopped responding"
                shard.deadline = to_microseconds(now + SENDING_SECONDS)
            else:
                shard.state, shard.deadline = ShardState.WAITING, None
        if late.sent:
            self._signals.lost(1)
            log.warning("the lease of shard %s of batch %s expired", range_of(late).name, late.batch_id)
        if given_up is not None:
            problem = f"failed {self._context.settings.attempts} times: {given_up}"
            self._halving.give_up(late.batch_id, range_of(late), late.lease, problem)

    def _forgive_own_gap(self) -> None:
        """Extends expired leases if this gateway has not looked for long: events that renew them may wait."""
        half, elapsed = self._context.settings.lease / 2, self._context.elapsed()
        if self._looked is None or elapsed - self._looked > half:
            now = self._clock()
            with self._database.write() as session:
                session.execute(
                    update(Shard)
                    .where(IS_LEASED_SHARD, Shard.sent.is_(True), Shard.deadline <= to_microseconds(now))
                    .values(deadline=to_microseconds(now + half))
                )
        self._looked = elapsed


def _by_batch(choices: Sequence[Choice]) -> dict[str, list[Choice]]:
    found: dict[str, list[Choice]] = {}
    for choice in choices:
        found.setdefault(choice.batch_id, []).append(choice)
    return found
