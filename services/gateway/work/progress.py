"""What the stages say that may be stored a little later, and many at a time: how far chunks are, and that they live.

Only what would be lost without harm is kept here: a job's progress, and the leases. If the process ends before it is
stored, numbers are too low for a while, and a lease may run out that had no need to.
"""

import threading
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select

from smalti.services.gateway.database.clock import Clock, to_microseconds
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import Chunk, ChunkState, Reached
from smalti.services.gateway.jobs.lifecycle import begin, draw, lock_open, reach
from smalti.services.gateway.jobs.observer import JobObserver
from smalti.services.gateway.settings import GatewaySettings

MAX_DOUBLINGS: Final = 6
"""Of the length of a lease."""


@dataclass
class _Entry:
    """What has been heard of a chunk since it was stored last."""

    heard: bool = False
    """Whether a stage has said something, and not only the broker."""
    reached: Reached = Reached.NOTHING
    rows: int = 0
    """Rows that are laid of each candidate, those that are kept of an initial picture among them."""


class ProgressBuffer:
    """Collects what is heard of chunks, and stores it; every thread may use it."""

    def __init__(
        self, database: Database, side: int, settings: GatewaySettings, notices: JobObserver, clock: Clock
    ) -> None:
        """Begins empty.

        Args:
            database: where it is stored.
            side: the rows of tiles of a picture.
            settings: for leases.
            notices: told of changes.
            clock: says what time it is.
        """
        self._database = database
        self._side = side
        self._settings = settings
        self._notices = notices
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[tuple[str, int], _Entry] = {}
        self.filled = threading.Event()
        """Set while there is something to store."""

    def sent(self, job_id: str, chunks: list[int]) -> None:
        """The broker has confirmed chunks."""
        for chunk in chunks:
            self._note(job_id, chunk, _Entry())

    def reached(self, job_id: str, chunk: int, reached: Reached) -> None:
        """A stage is done with a chunk."""
        self._note(job_id, chunk, _Entry(heard=True, reached=reached))

    def laid(self, job_id: str, chunk: int, rows: int) -> None:
        """So many rows are laid of each candidate of a chunk, those that are kept among them."""
        self._note(job_id, chunk, _Entry(heard=True, rows=rows))

    def store(self) -> None:
        """Stores what was collected.

        Raises:
            DatabaseUnavailableError: it could not; it is kept for the next time.
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
                self._note(job_id, chunk, entry)
            raise
        for job_id in changed:
            self._notices.changed(job_id)

    def _note(self, job_id: str, chunk: int, news: _Entry) -> None:
        with self._lock:
            entry = self._entries.setdefault((job_id, chunk), _Entry())
            entry.heard |= news.heard
            entry.reached = max(entry.reached, news.reached)
            entry.rows = max(entry.rows, news.rows)
            self.filled.set()

    def _write(self, entries: dict[tuple[str, int], _Entry]) -> list[str]:
        """Returns the jobs that have changed."""
        by_job: dict[str, dict[int, _Entry]] = {}
        for (job_id, chunk), entry in entries.items():
            by_job.setdefault(job_id, {})[chunk] = entry
        now = self._clock()
        changed = []
        with self._database.write() as session:
            # In one order everywhere, so that two that store at the same time do not wait for each other.
            for job_id in sorted(by_job):
                job = lock_open(session, job_id)
                if job is None:
                    continue
                news = by_job[job_id]
                chunks = session.scalars(select(Chunk).where(Chunk.job_id == job_id, Chunk.number.in_(news)))
                visible = False
                for row in chunks:
                    entry = news[row.number]
                    visible |= reach(job, row, entry.reached)
                    to_draw = job.rows // job.candidates
                    visible |= draw(job, row, min(entry.rows - (self._side - to_draw), to_draw))
                    if entry.heard:
                        visible |= begin(job, to_microseconds(now))
                    renew(row, self._settings, now, heard=entry.heard)
                if visible:
                    job.version += 1
                    changed.append(job_id)
        return changed


def renew(chunk: Chunk, settings: GatewaySettings, now: float, *, heard: bool = True) -> None:
    """Lets a chunk's lease begin anew.

    Args:
        chunk: which.
        settings: for its length: twice as long after every loss, so that the broker does not fill with copies.
        now: the time in seconds.
        heard: whether a stage has spoken of it; otherwise it was the broker.
    """
    if chunk.state is ChunkState.LEASED:
        chunk.sent = True
        chunk.heard |= heard
        doublings = min(chunk.losses, MAX_DOUBLINGS)
        chunk.deadline = to_microseconds(now + settings.lease * 2.0**doublings)
