"""Who watches which job, and what is known of pictures that are being drawn.

Threads tell of changes, and the event loop wakes those who watch. What other gateways change is found by looking at the
versions of all jobs that are watched, now and then.
"""

import asyncio
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, Protocol

from smalti.errors import UnavailableError
from smalti.messages import Progress

log = logging.getLogger(__name__)

MAX_CANDIDATES: Final = 4096
"""Of so many candidates the rows are kept; of jobs that were drawn longer ago, there are none any more."""
MAX_RUNS: Final = 1024
"""Runs that wait for a slow watcher; more are left out, the oldest first."""
AT_ONCE: Final = 500
"""Jobs whose versions are asked for in one go."""


Run = tuple[int, int, tuple[int, ...]]
"""A candidate, the place of the first of some of its tokens, and these tokens, which follow each other."""


class Watcher:
    """One who watches a job; belongs to the event loop."""

    def __init__(self, *, rows: bool) -> None:
        """Nothing has happened; `rows` says whether it is told of rows."""
        self.rows = rows
        self.news = asyncio.Event()
        """Set when something has happened."""
        self.changed = True
        """The job has another version, perhaps."""
        self.version = 0
        """The version that was seen last."""
        self.runs: deque[Run] = deque(maxlen=MAX_RUNS)
        """In the order in which they were drawn."""

    def wake(self) -> None:
        """The job has changed."""
        self.changed = True
        self.news.set()


class PreviewTokens:
    """The rows of pictures that are being drawn, of the jobs of late; every thread may use it."""

    def __init__(self) -> None:
        """Begins empty."""
        self._lock = threading.Lock()
        self._rows: OrderedDict[str, dict[int, dict[int, tuple[int, ...]]]] = OrderedDict()
        self._candidates = 0

    def lay(self, job_id: str, candidate: int, start: int, tokens: tuple[int, ...]) -> None:
        """Keeps tokens of a candidate that follow each other."""
        with self._lock:
            job = self._rows.setdefault(job_id, {})
            self._rows.move_to_end(job_id)
            if candidate not in job:
                job[candidate] = {}
                self._candidates += 1
            job[candidate][start] = tokens
            while self._candidates > MAX_CANDIDATES and len(self._rows) > 1:
                self._candidates -= len(self._rows.popitem(last=False)[1])

    def forget(self, job_id: str) -> None:
        """Lets go of a job that has ended."""
        with self._lock:
            self._candidates -= len(self._rows.pop(job_id, ()))

    def runs(self, job_id: str) -> list[Run]:
        """Returns what there is of a job, for each candidate in the order of the places."""
        with self._lock:
            return [
                (candidate, start, tokens)
                for candidate, rows in self._rows.get(job_id, {}).items()
                for start, tokens in sorted(rows.items())
            ]


class Versions(Protocol):
    """Asks the database for the versions of jobs."""

    def __call__(self, job_ids: Sequence[str]) -> Mapping[str, int]:
        """Returns them; jobs that are not there are left out."""
        ...


class Hub:
    """Wakes those who watch."""

    def __init__(self, side: int) -> None:
        """Nobody watches yet.

        Args:
            side: the tiles of a row.
        """
        self.canvases = PreviewTokens()
        self._side = side
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watchers: dict[str, set[Watcher]] = {}

    @contextmanager
    def watch(self, job_id: str, *, rows: bool = False) -> Iterator[Watcher]:
        """Watches a job; to be called in the event loop.

        Args:
            job_id: which.
            rows: whether to be told of rows as well; those that are at hand come first.
        """
        self._loop = asyncio.get_running_loop()
        watcher = Watcher(rows=rows)
        if rows:
            watcher.runs.extend(self.canvases.runs(job_id))
        self._watchers.setdefault(job_id, set()).add(watcher)
        try:
            yield watcher
        finally:
            self._watchers[job_id].discard(watcher)
            if not self._watchers[job_id]:
                del self._watchers[job_id]

    def changed(self, job_id: str) -> None:
        """A job has another version; by any thread."""
        self._call(self._wake, job_id)

    def ended(self, job_id: str) -> None:
        """A job has ended; by any thread."""
        self.canvases.forget(job_id)
        self.changed(job_id)

    def drawn(self, progress: Progress) -> None:
        """Rows were drawn; by any thread."""
        if len(progress.tokens) != len(progress.candidates):
            return
        # Whether the rows that were given count among those that are laid or not: they end in the same place.
        end = (progress.rows + self._side - progress.of) * self._side
        runs = [
            (candidate, end - len(tokens), tokens)
            for candidate, tokens in zip(progress.candidates, progress.tokens, strict=True)
            if 0 <= end - len(tokens) < end <= self._side**2
        ]
        for candidate, start, tokens in runs:
            self.canvases.lay(progress.job, candidate, start, tokens)
        self._call(self._give, progress.job, runs)

    async def look(self, versions: Versions, seconds: float) -> None:
        """Looks for what other gateways have changed, for ever."""
        while True:
            await asyncio.sleep(seconds)
            watched = list(self._watchers)
            try:
                for start in range(0, len(watched), AT_ONCE):
                    part = watched[start : start + AT_ONCE]
                    found = await asyncio.to_thread(versions, part)
                    self._compare(part, found)
            except UnavailableError as error:
                log.warning("changes of other gateways are not seen: %s", error)

    def _compare(self, job_ids: Sequence[str], found: Mapping[str, int]) -> None:
        for job_id in job_ids:
            for watcher in self._watchers.get(job_id, ()):
                if found.get(job_id) != watcher.version:
                    watcher.wake()

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        loop = self._loop
        if loop is not None:
            # The loop may close at any moment; then nobody watches any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(function, *arguments)

    def _wake(self, job_id: str) -> None:
        for watcher in self._watchers.get(job_id, ()):
            watcher.wake()

    def _give(self, job_id: str, runs: Sequence[Run]) -> None:
        for watcher in self._watchers.get(job_id, ()):
            if watcher.rows:
                watcher.runs.extend(runs)
                watcher.news.set()
