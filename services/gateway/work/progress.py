"""Collects the progress of chunks and the renewal of their leases, and stores many of them together.

Only what can be lost without harm is kept here. If the process dies before it is stored, progress is too low for a
while, and a chunk may be sent again needlessly.
"""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select

from smalti.errors import UnavailableError
from smalti.services.gateway.database.clock import to_microseconds
from smalti.services.gateway.database.tables import Chunk, ChunkProgress, ChunkState
from smalti.services.gateway.jobs.aside import apart
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.lifecycle import advance, advance_rows, lock_open, start, touch
from smalti.services.gateway.jobs.objects import added
from smalti.services.gateway.settings import GatewaySettings
from smalti.storage import ObjectRef

log = logging.getLogger(__name__)

MAX_DOUBLINGS: Final = 6
"""Number of times that the length of a lease can double."""


@dataclass
class _Entry:
    """The progress of a chunk that is not stored yet."""

    heard: bool = False
    """Whether a stage has sent an event; False if only the broker has confirmed the message."""
    begun: bool = False
    """Whether the generator has begun the chunk."""
    reached: ChunkProgress = ChunkProgress.NOTHING
    rows: int = 0
    """Rows of each candidate that are complete, including those kept of an initial image."""
    objects: tuple[ObjectRef, ...] = ()
    """Objects that stages have written."""


class ProgressBuffer:
    """Collects the progress of chunks, and stores it when `store` is called; thread-safe."""

    def __init__(self, context: GatewayContext) -> None:
        self._context = context
        self._database = context.database
        self._side = context.spec.side
        self._settings = context.settings
        self._events = context.events
        self._clock = context.clock
        self._lock = threading.Lock()
        self._entries: dict[tuple[str, int], _Entry] = {}
        self.filled = threading.Event()
        """Set while there is something to store."""

    def sent(self, job_id: str, chunks: list[int]) -> None:
        """Notes that the broker has confirmed the messages of chunks."""
        for chunk in chunks:
            self._add(job_id, chunk, _Entry())

    def reached(
        self, job_id: str, chunk: int, reached: ChunkProgress, objects: Sequence[ObjectRef] = ()
    ) -> None:
        """Notes that a stage has finished a chunk, and has written objects."""
        self._add(job_id, chunk, _Entry(heard=True, reached=reached, objects=tuple(objects)))

    def rows_reached(self, job_id: str, chunk: int, rows: int) -> None:
        """Notes the complete rows of each candidate of a chunk, including those kept of an initial image."""
        self._add(job_id, chunk, _Entry(heard=True, begun=True, rows=rows))

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
            changed = self._write(entries)
        except BaseException:
            for (job_id, chunk), entry in entries.items():
                self._add(job_id, chunk, entry)
            raise
        for job_id in changed:
            self._events.changed(job_id)

    def _add(self, job_id: str, chunk: int, news: _Entry) -> None:
        with self._lock:
            entry = self._entries.setdefault((job_id, chunk), _Entry())
            entry.heard |= news.heard
            entry.begun |= news.begun
            entry.reached = max(entry.reached, news.reached)
            entry.rows = max(entry.rows, news.rows)
            entry.objects = tuple(dict.fromkeys((*entry.objects, *news.objects)))
            self.filled.set()

    def _write(self, entries: dict[tuple[str, int], _Entry]) -> list[str]:
        """Stores entries; returns the jobs of which clients can see a change."""
        by_job: dict[str, dict[int, _Entry]] = {}
        for (job_id, chunk), entry in entries.items():
            by_job.setdefault(job_id, {})[chunk] = entry
        try:
            return self._write_together(by_job)
        except UnavailableError:
            raise
        except Exception:
            log.exception("the progress of %d jobs is stored one by one", len(by_job))
        changed = []
        for job_id, news in by_job.items():
            with apart(self._context, job_id):
                changed += self._write_together({job_id: news})
        return changed

    def _write_together(self, by_job: dict[str, dict[int, _Entry]]) -> list[str]:
        now = self._clock()
        changed = []
        with self._database.write() as session:
            # Sorted, so that two gateways lock the jobs in the same order and cannot deadlock.
            for job_id in sorted(by_job):
                job = lock_open(session, job_id)
                if job is None:
                    continue
                news = by_job[job_id]
                chunks = session.scalars(select(Chunk).where(Chunk.job_id == job_id, Chunk.number.in_(news)))
                visible = False
                for row in chunks:
                    entry = news[row.number]
                    visible |= advance(job, row, entry.reached)
                    if entry.objects:
                        # Those of the ranker's event count, whatever else was written.
                        row.objects = added(row.objects, job_id, entry.objects, count=False)
                    to_generate = job.rows // job.candidates
                    generated = entry.rows - (self._side - to_generate)
                    visible |= advance_rows(job, row, min(generated, to_generate))
                    if entry.heard:
                        visible |= start(job, to_microseconds(now))
                    renew_lease(row, self._settings, now)
                    if entry.heard and row.state is ChunkState.LEASED:
                        # What is generated waits for the next stage.
                        row.begun = (entry.begun or row.begun) and row.reached < ChunkProgress.GENERATED
                if visible:
                    touch(job)
                    changed.append(job_id)
        return changed


def renew_lease(chunk: Chunk, settings: GatewaySettings, now: float) -> None:
    """Restarts the lease of a chunk.

    Args:
        chunk: a chunk of a locked job.
        settings: the length of a lease. It doubles with every loss, so that the queues do not fill with copies.
        now: the time in seconds.
    """
    if chunk.state is ChunkState.LEASED:
        chunk.sent = True
        doublings = min(chunk.losses, MAX_DOUBLINGS)
        chunk.deadline = to_microseconds(now + settings.lease * 2.0**doublings)
