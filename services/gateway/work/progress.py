"""Collects the progress of chunks and the renewal of their leases, and stores many of them together.

Only what can be lost without harm is kept here. If the process dies before it is stored, progress is too low for a
while, and a chunk may be sent again needlessly.
"""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from sqlalchemy import select

from smalti.errors import UnavailableError
from smalti.services.gateway.database.clock import to_microseconds, to_seconds
from smalti.services.gateway.database.tables import Chunk, ChunkProgress, ChunkState
from smalti.services.gateway.jobs.aside import apart
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.lifecycle import advance, advance_rows, lock_open, start, touch
from smalti.services.gateway.jobs.objects import added
from smalti.services.gateway.jobs.reading import is_of_earlier_revision
from smalti.services.gateway.settings import GatewaySettings
from smalti.storage import ObjectRef

log = logging.getLogger(__name__)

MAX_DOUBLINGS: Final = 6
"""Number of times that the length of a lease can double."""


class _Key(NamedTuple):
    """What progress is of."""

    job_id: str
    chunk: int
    lease: int | None
    """The lease under which it was made; None if it concerns any."""


@dataclass
class _Entry:
    """The progress of a chunk that is not stored yet."""

    heard: bool = False
    """Whether a stage has sent an event; False if only the broker has confirmed the message."""
    begun: bool = False
    """Whether the generator has begun the chunk."""
    reached: ChunkProgress = ChunkProgress.NOTHING
    rows_left: int | None = None
    """Rows of each candidate that are still to be generated; None if the generator has not said."""
    objects: tuple[ObjectRef, ...] = ()
    """Objects that stages have written."""

    def add(self, news: "_Entry") -> None:
        """Adds further progress."""
        self.heard |= news.heard
        self.begun |= news.begun
        self.reached = max(self.reached, news.reached)
        if news.rows_left is not None:
            so_far = news.rows_left if self.rows_left is None else self.rows_left
            self.rows_left = min(so_far, news.rows_left)
        self.objects = tuple(dict.fromkeys((*self.objects, *news.objects)))


class ProgressBuffer:
    """Collects the progress of chunks, and stores it when `store` is called; thread-safe."""

    def __init__(self, context: GatewayContext) -> None:
        self._context = context
        self._database = context.database
        self._settings = context.settings
        self._events = context.events
        self._clock = context.clock
        self._lock = threading.Lock()
        self._entries: dict[_Key, _Entry] = {}
        self.filled = threading.Event()
        """Set while there is something to store."""

    def sent(self, job_id: str, chunks: list[int]) -> None:
        """Notes that the broker has confirmed the messages of chunks."""
        for chunk in chunks:
            self._add(_Key(job_id, chunk, None), _Entry())

    def reached(
        self,
        job_id: str,
        chunk: int,
        reached: ChunkProgress,
        objects: Sequence[ObjectRef] = (),
        *,
        lease: int | None = None,
    ) -> None:
        """Notes that a stage has finished a chunk, and has written objects."""
        self._add(_Key(job_id, chunk, lease), _Entry(heard=True, reached=reached, objects=tuple(objects)))

    def rows_reached(self, job_id: str, chunk: int, rows_left: int, *, lease: int | None = None) -> None:
        """Notes how many rows of each candidate of a chunk are still to be generated."""
        self._add(_Key(job_id, chunk, lease), _Entry(heard=True, begun=True, rows_left=rows_left))

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
            for key, entry in entries.items():
                self._add(key, entry)
            raise
        for job_id in changed:
            self._events.changed(job_id)

    def _add(self, key: _Key, news: _Entry) -> None:
        with self._lock:
            self._entries.setdefault(key, _Entry()).add(news)
            self.filled.set()

    def _write(self, entries: dict[_Key, _Entry]) -> list[str]:
        """Stores entries; returns the jobs of which clients can see a change."""
        by_job: dict[str, dict[_Key, _Entry]] = {}
        for key, entry in entries.items():
            by_job.setdefault(key.job_id, {})[key] = entry
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

    def _write_together(self, by_job: dict[str, dict[_Key, _Entry]]) -> list[str]:
        now = self._clock()
        changed, first_rows = [], []
        with self._database.write() as session:
            # Sorted, so that two gateways lock the jobs in the same order and cannot deadlock.
            for job_id in sorted(by_job):
                job = lock_open(session, job_id)
                if job is None:
                    continue
                had_rows = job.rows_drawn > 0
                news: dict[int, _Entry] = {}
                for key, entry in by_job[job_id].items():
                    if not is_of_earlier_revision(job, key.lease):
                        news.setdefault(key.chunk, _Entry()).add(entry)
                chunks = session.scalars(select(Chunk).where(Chunk.job_id == job_id, Chunk.number.in_(news)))
                visible = False
                for row in chunks:
                    entry = news[row.number]
                    visible |= advance(job, row, entry.reached)
                    if entry.objects:
                        # Those of the ranker's event count, whatever else was written.
                        row.objects = added(row.objects, job_id, entry.objects, count=False)
                    to_generate = job.rows // job.candidates
                    if entry.rows_left is not None:
                        visible |= advance_rows(job, row, to_generate - max(entry.rows_left, 0))
                    if entry.heard:
                        visible |= start(job, to_microseconds(now))
                    renew_lease(row, self._settings, now)
                    if entry.heard and row.state is ChunkState.LEASED:
                        # What is generated waits for the next stage.
                        row.begun = (entry.begun or row.begun) and row.reached < ChunkProgress.GENERATED
                if job.rows_drawn and not had_rows:
                    first_rows.append(now - to_seconds(job.created))
                if visible:
                    touch(job)
                    changed.append(job_id)
        for seconds in first_rows:
            self._events.rows_began(seconds)
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
