"""Who watches which job, and the tokens of pictures that are being generated.

Threads report changes, and the event loop wakes the watchers. PostgreSQL reports those that other gateways make; what
it does not report is found by polling the versions of all watched jobs.
"""

import asyncio
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from smalti.errors import UnavailableError
from smalti.messages import Progress
from smalti.services.gateway.jobs.observer import JobObserver, JobOutcome

log = logging.getLogger(__name__)

MAX_CANDIDATES: Final = 4096
"""Tokens are kept for at most this many candidates; the jobs that were updated longest ago are dropped first."""
MAX_RUNS: Final = 1024
"""Maximum number of token runs that wait for a slow watcher; the oldest are dropped first."""
POLLS_WHILE_LISTENING: Final = 10
"""One in so many polls is made while the database reports changes."""
POLL_BATCH: Final = 500
"""Number of jobs whose versions one query reads."""


class TokenRun(NamedTuple):
    """Consecutive image tokens of a candidate."""

    candidate: int
    start: int
    """Position of the first token in the picture."""
    tokens: tuple[int, ...]
    lease: int = 0
    """The lease under which it was drawn."""


class Watcher:
    """A client that watches a job. Only the event loop may use it."""

    def __init__(self, *, rows: bool) -> None:
        self.rows = rows
        """Whether the watcher wants token runs."""
        self.wakeup = asyncio.Event()
        """Set when something has happened."""
        self.changed = True
        """Whether the job may have a new version."""
        self.version = 0
        """The version that was last sent."""
        self.runs: deque[TokenRun] = deque(maxlen=MAX_RUNS)
        """Token runs to send, in the order in which they were generated."""
        self.since = 0
        """The first lease whose runs count."""

    def wake(self) -> None:
        """Wakes the watcher, since the job has changed."""
        self.changed = True
        self.wakeup.set()


@dataclass(kw_only=True)
class _Watched:
    """A job that clients watch."""

    change: int
    """The number of the last change that was reported; no two changes of any jobs have the same."""
    watchers: set[Watcher] = field(default_factory=set)


class PreviewTokens:
    """Tokens of the pictures that are being generated; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: OrderedDict[str, dict[int, dict[int, TokenRun]]] = OrderedDict()
        self._candidates = 0

    def add(self, job_id: str, run: TokenRun) -> None:
        """Keeps the tokens of a run."""
        with self._lock:
            job = self._rows.setdefault(job_id, {})
            self._rows.move_to_end(job_id)
            if run.candidate not in job:
                job[run.candidate] = {}
                self._candidates += 1
            before = job[run.candidate].get(run.start)
            if before is None or before.lease <= run.lease:
                job[run.candidate][run.start] = run
            while self._candidates > MAX_CANDIDATES and len(self._rows) > 1:
                self._candidates -= len(self._rows.popitem(last=False)[1])

    def discard(self, job_id: str) -> None:
        """Drops the tokens of a job."""
        with self._lock:
            self._candidates -= len(self._rows.pop(job_id, ()))

    def runs(self, job_id: str, *, since: int = 0) -> list[TokenRun]:
        """Returns the token runs of a job; those of a candidate are in the order of their positions.

        Args:
            job_id: the job.
            since: the first lease that counts; what is older was drawn by a revision that the job is not bound to any
                more.
        """
        with self._lock:
            return [
                run
                for rows in self._rows.get(job_id, {}).values()
                for _, run in sorted(rows.items())
                if run.lease >= since
            ]


@runtime_checkable
class ReadVersions(Protocol):
    """Reads the versions of jobs from the database."""

    def __call__(self, job_ids: Sequence[str]) -> Mapping[str, int]:
        """Returns the versions by job; jobs that do not exist are left out."""
        ...


class WatcherHub(JobObserver):
    """Wakes the watchers of a job when it changes. Threads call it; the watchers run in the event loop."""

    def __init__(self, side_of: Callable[[str, int | None], int | None]) -> None:
        """Begins without watchers.

        Args:
            side_of: returns the tokens per row of a job's pictures under a lease; None if there is no such job.
        """
        self.preview_tokens = PreviewTokens()
        self._side_of = side_of
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watched: dict[str, _Watched] = {}
        self._changes = count()

    @contextmanager
    def watch(self, job_id: str, *, rows: bool = False) -> Iterator[Watcher]:
        """Watches a job while the block runs. Must be called in the event loop.

        Args:
            job_id: the job.
            rows: whether to send token runs too. The watcher begins with the runs that are known already.
        """
        self._loop = asyncio.get_running_loop()
        watcher = Watcher(rows=rows)
        if rows:
            watcher.runs.extend(self.preview_tokens.runs(job_id))
        if job_id not in self._watched:
            self._watched[job_id] = _Watched(change=next(self._changes))
        watched = self._watched[job_id]
        watched.watchers.add(watcher)
        try:
            yield watcher
        finally:
            watched.watchers.discard(watcher)
            if not watched.watchers:
                del self._watched[job_id]

    def change(self, job_id: str) -> int:
        """Returns the number of the last change of a job that is watched.

        What was read since a number was the last one may be given to every watcher while it still is.
        """
        return self._watched[job_id].change

    def changed(self, job_id: str) -> None:  # noqa: D102
        self._call(self._wake, job_id)

    def ended(self, outcome: JobOutcome) -> None:  # noqa: D102
        self.preview_tokens.discard(outcome.job_id)
        self.changed(outcome.job_id)

    def deleted(self, job_id: str) -> None:  # noqa: D102
        self.changed(job_id)

    def rows_drawn(self, progress: Progress) -> None:
        """Passes the rows of a progress event to the watchers. Any thread may call it.

        Raises:
            DatabaseUnavailableError: the sizes of the job are not known, and the database does not answer.
        """
        if not progress.tokens or len(progress.tokens) != len(progress.candidates):
            return
        side = self._side_of(progress.job, progress.lease)
        if side is None:
            return
        # `rows` may or may not count the rows of an initial image; the position of the last rows is the same.
        end = (progress.rows + side - progress.of) * side
        runs = [
            TokenRun(candidate, end - len(tokens), tokens, progress.lease or 0)
            for candidate, tokens in zip(progress.candidates, progress.tokens, strict=True)
            if 0 <= end - len(tokens) < end <= side**2
        ]
        for run in runs:
            self.preview_tokens.add(progress.job, run)
        self._call(self._send, progress.job, runs)

    async def poll(
        self, read_versions: ReadVersions, seconds: float, listening: Callable[[], int] = lambda: 0
    ) -> None:
        """Looks for changes made by other gateways, until it is cancelled.

        Args:
            read_versions: reads the versions of jobs; it may block.
            seconds: interval between two polls.
            listening: returns the number of the connection that reports changes, 0 without one. As long as it stays the
                same, only every `POLLS_WHILE_LISTENING`th poll is made, in case a notice is lost.
        """
        before, skipped = 0, 0
        while True:
            await asyncio.sleep(seconds)
            now = listening()
            if now and now == before and skipped < POLLS_WHILE_LISTENING - 1:
                skipped += 1
                continue
            before, skipped = now, 0
            watched = list(self._watched)
            try:
                for start in range(0, len(watched), POLL_BATCH):
                    job_ids = watched[start : start + POLL_BATCH]
                    versions = await asyncio.to_thread(read_versions, job_ids)
                    self._wake_outdated(job_ids, versions)
            except UnavailableError as error:
                log.warning("cannot look for changes made by other gateways: %s", error)

    def _wake_outdated(self, job_ids: Sequence[str], versions: Mapping[str, int]) -> None:
        for job_id in job_ids:
            version = versions.get(job_id)
            watched = self._watched.get(job_id)
            if watched and any(watcher.version != version for watcher in watched.watchers):
                self._wake(job_id)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        loop = self._loop
        if loop is not None:
            # The loop may close at any moment; then there are no watchers left.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(function, *arguments)

    def _wake(self, job_id: str) -> None:
        if watched := self._watched.get(job_id):
            watched.change = next(self._changes)
            for watcher in watched.watchers:
                watcher.wake()

    def _send(self, job_id: str, runs: Sequence[TokenRun]) -> None:
        if watched := self._watched.get(job_id):
            for watcher in watched.watchers:
                if watcher.rows:
                    watcher.runs.extend(runs)
                    watcher.wakeup.set()
