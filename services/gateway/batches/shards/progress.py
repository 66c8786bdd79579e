"""Collects how far shards are, and stores it together. If it is lost, progress is told too low for a while."""

import logging
import threading
from dataclasses import dataclass
from typing import Final

from sqlalchemy import update

from smalti.messages import ShardProgress, Stage
from smalti.services.gateway.batches.lifecycle import DRAWING_STATES, lock, touch
from smalti.services.gateway.batches.shards.messages import REACHED, ShardName, is_shard
from smalti.services.gateway.batches.signals import BatchSignals
from smalti.services.gateway.database.clock import to_microseconds
from smalti.services.gateway.database.tables import IS_LEASED_SHARD, Shard
from smalti.services.gateway.jobs.context import GatewayContext

log = logging.getLogger(__name__)

TOUCH_SECONDS: Final = 2.0
"""Minimum time between two versions of a batch that differ in the progress of shards alone."""


@dataclass(frozen=True)
class _Entry:
    lease: int
    stage: Stage
    done: int


class ShardProgressBuffer:
    """Collects progress, and stores it when `store` is called; thread-safe."""

    def __init__(self, context: GatewayContext, signals: BatchSignals) -> None:
        self._context = context
        self._signals = signals
        self._lock = threading.Lock()
        self._entries: dict[ShardName, _Entry] = {}
        self._touched: dict[str, float] = {}
        self.filled = threading.Event()
        """Set while there is something to store."""

    def add(self, name: ShardName, event: ShardProgress) -> None:
        """Notes that a stage works on a shard, and how far it is."""
        if event.stage not in REACHED:
            return
        with self._lock:
            before = self._entries.get(name)
            if before is None or before.lease <= event.lease:
                self._entries[name] = _Entry(event.lease, event.stage, event.done)
            self.filled.set()

    def store(self) -> None:
        """Stores what was collected.

        Raises:
            DatabaseUnavailableError: the database does not answer; the entries are kept for the next call.
        """
        with self._lock:
            entries, self._entries = self._entries, {}
            self.filled.clear()
        if not entries:
            return
        try:
            self._write(entries)
        except BaseException:
            with self._lock:
                self._entries = {**entries, **self._entries}
                self.filled.set()
            raise
        self._tell({name.batch_id for name in entries})

    def _write(self, entries: dict[ShardName, _Entry]) -> None:
        until = to_microseconds(self._context.clock() + self._context.settings.lease)
        with self._context.database.write() as session:
            # In one order, so that two gateways cannot deadlock.
            for name, entry in sorted(entries.items(), key=lambda item: item[0][:3]):
                # What the stage has finished since waits for the next one, and is not begun.
                is_worked_on = (
                    Shard.lease == entry.lease,
                    Shard.reached < REACHED[entry.stage],
                    IS_LEASED_SHARD,
                )
                values: dict[str, object] = {"begun": True, "sent": True, "deadline": until}
                if entry.stage is Stage.GENERATE:
                    values["generated"] = entry.done
                session.execute(update(Shard).where(*is_shard(name), *is_worked_on).values(**values))

    def _tell(self, batch_ids: set[str]) -> None:
        """Gives batches a new version, now and then."""
        now = self._context.elapsed()
        self._touched = {each: at for each, at in self._touched.items() if now - at < TOUCH_SECONDS}
        due = sorted(batch_ids - self._touched.keys())
        for batch_id in due:
            with self._context.database.write() as session:
                batch = lock(session, batch_id, skip_locked=True)
                if batch is None or batch.state not in DRAWING_STATES:
                    continue
                touch(batch)
            self._touched[batch_id] = now
            self._signals.changed(batch_id)
