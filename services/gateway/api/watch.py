"""WatchJob: streams a job after each change, with rows and previews on request, until the job has ended."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Final, Generic, TypeVar

from smalti.errors import SmaltiError
from smalti.services.gateway.api.conversion import is_final
from smalti.services.gateway.api.previews import PreviewRenderer
from smalti.services.gateway.database.tables import Job as JobRow
from smalti.services.gateway.jobs.reading import first_lease
from smalti.services.gateway.jobs.repository import JobSnapshot
from smalti.services.gateway.jobs.watchers import TokenRun, Watcher, WatcherHub
from smalti.v1 import tokens_pb2
from smalti.v1.generator_pb2 import RowsDrawn
from smalti.v1.image_pb2 import Preview, WatchJobResponse
from smalti.v1.job_pb2 import Job

log = logging.getLogger(__name__)

Read = TypeVar("Read")

KEEPALIVE_SECONDS: Final = 15.0
"""Time without a message after which an empty one is sent."""


class SharedReads(Generic[Read]):
    """Reads what has changed. Watchers that were woken by the same change share one read, however many they are."""

    def __init__(self, watchers: WatcherHub, get: Callable[[str], Awaitable[Read]]) -> None:
        """Takes what wakes the watchers, and what reads a job, or a batch."""
        self._watchers = watchers
        self._get = get
        self._reads: dict[str, tuple[int, asyncio.Future[Read]]] = {}
        """The reads that are in progress, with the change that they follow."""

    async def read(self, watched: str) -> Read:
        """Reads what is watched, by its id."""
        change = self._watchers.change(watched)
        followed, reading = self._reads.get(watched, (-1, None))
        if reading is None or reading.done() or followed != change:
            reading = asyncio.ensure_future(self._get(watched))
            self._reads[watched] = (change, reading)
            reading.add_done_callback(lambda done: self._end_read(watched, done))
        return await asyncio.shield(reading)

    def _end_read(self, watched: str, done: "asyncio.Future[Read]") -> None:
        if not done.cancelled():
            done.exception()  # Its watchers may all have gone.
        if self._reads.get(watched, (-1, None))[1] is done:
            del self._reads[watched]


class WatchHandler:
    """Streams changes of jobs. Only the event loop may use it."""

    def __init__(
        self,
        watchers: WatcherHub,
        get: Callable[[str], Awaitable[tuple[JobSnapshot, Job]]],
        *,
        previews: PreviewRenderer | None,
        preview_seconds: float,
        keepalive_seconds: float = KEEPALIVE_SECONDS,
    ) -> None:
        """Creates the handler.

        Args:
            watchers: wakes the streams after changes.
            get: reads a job and converts it to a message.
            previews: renders previews; None if nothing does.
            preview_seconds: minimum time between two previews.
            keepalive_seconds: maximum time without a message.
        """
        self._watchers = watchers
        self._reads = SharedReads(watchers, get)
        self._previews = previews
        self._preview_seconds = preview_seconds
        self._keepalive_seconds = keepalive_seconds

    async def watch(
        self, job_id: str, *, since: int, rows: bool, previews: bool
    ) -> AsyncGenerator[WatchJobResponse, None]:
        """Yields the changes of a job; the last message is its final state.

        Args:
            job_id: the job.
            since: a version that the client has seen. Only later versions are sent; the final state is always sent.
            rows: whether to send the tokens of new rows.
            previews: whether to send previews.

        Raises:
            JobNotFoundError: the job does not exist, or has been deleted.
        """
        loop = asyncio.get_running_loop()
        rendered: deque[Preview] = deque()
        rendering: asyncio.Task[None] | None = None
        revision: str | None = None
        with self._watchers.watch(job_id, rows=rows) as watcher:
            try:
                while True:
                    quiet_until = loop.time() + self._keepalive_seconds
                    watcher.wakeup.clear()
                    if new_rows := _take_rows(watcher):
                        yield WatchJobResponse(rows=new_rows)
                    while rendered:
                        yield WatchJobResponse(preview=rendered.popleft())
                    if watcher.changed:
                        watcher.changed = False
                        snapshot, message = await self._reads.read(job_id)
                        watcher.version = snapshot.job.version
                        watcher.since = first_lease(snapshot.job)
                        final = is_final(snapshot.job)
                        if final or snapshot.job.version > since:
                            since = snapshot.job.version
                            yield WatchJobResponse(job=message)
                        if final:
                            return
                        renders = previews and self._previews and self._previews.can_render(snapshot.job)
                        if rendering is not None and snapshot.job.revision != revision:
                            # Bound to another revision, which draws from the beginning, perhaps with another decoder.
                            rendering.cancel()
                            rendering = None
                            rendered.clear()
                        if self._previews and renders and rendering is None:
                            revision = snapshot.job.revision
                            rendering = asyncio.create_task(
                                self._render(self._previews, snapshot.job, rendered, watcher.wakeup)
                            )
                    try:
                        async with asyncio.timeout_at(quiet_until):
                            await watcher.wakeup.wait()
                    except TimeoutError:
                        yield WatchJobResponse()
            finally:
                if rendering is not None:
                    rendering.cancel()
                    with suppress(asyncio.CancelledError):
                        await rendering

    async def _render(
        self,
        previews: PreviewRenderer,
        job: JobRow,
        rendered: deque[Preview],
        wakeup: asyncio.Event,
    ) -> None:
        """Renders previews until it is cancelled. Newer previews replace those that are not sent yet."""
        shown: dict[int, int] = {}
        while True:
            await asyncio.sleep(self._preview_seconds)
            try:
                newest = await previews.render(job, shown)
            except SmaltiError as error:
                log.info("skipping previews: %s", error, extra={"job": job.id})
                continue
            shown |= {preview.candidate: preview.rows_drawn for preview in newest}
            if permitted := [preview for preview in newest if preview.HasField("image")]:
                rendered.clear()
                rendered.extend(permitted)
                wakeup.set()


def _take_rows(watcher: Watcher) -> RowsDrawn | None:
    """Takes the token runs that wait for a watcher; consecutive runs of a candidate are joined."""
    runs: dict[int, TokenRun] = {}
    while watcher.runs:
        run = watcher.runs[0]
        if run.lease < watcher.since:
            watcher.runs.popleft()
            continue
        previous = runs.get(run.candidate)
        if previous is None:
            runs[run.candidate] = run
        elif previous.start + len(previous.tokens) == run.start:
            runs[run.candidate] = previous._replace(tokens=previous.tokens + run.tokens)
        else:
            watcher.wakeup.set()  # A message has one run per candidate; the next message has the rest.
            break
        watcher.runs.popleft()
    if not runs:
        return None
    return RowsDrawn(
        runs=[
            tokens_pb2.TokenRun(candidate=run.candidate, start=run.start, tokens=run.tokens)
            for run in runs.values()
        ]
    )
