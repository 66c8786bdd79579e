"""WatchJob: a job after each change, and, where they are asked for, rows and previews, until the job has ended."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Final

from smalti.errors import SmaltiError
from smalti.services.gateway.api.conversion import is_final
from smalti.services.gateway.api.previews import Previews
from smalti.services.gateway.jobs.hub import Hub, Run, Watcher
from smalti.services.gateway.jobs.repository import Snapshot
from smalti.v1.generator_pb2 import RowsDrawn
from smalti.v1.image_pb2 import Preview, WatchJobResponse
from smalti.v1.job_pb2 import Job
from smalti.v1.tokens_pb2 import TokenRun

log = logging.getLogger(__name__)

SIGN_OF_LIFE_SECONDS: Final = 15.0


class Watching:
    """Watches jobs; belongs to the event loop."""

    def __init__(
        self,
        hub: Hub,
        get: Callable[[str], Awaitable[tuple[Snapshot, Job]]],
        *,
        previews: Previews | None,
        preview_seconds: float,
        silence: float = SIGN_OF_LIFE_SECONDS,
    ) -> None:
        """Takes what it works with.

        Args:
            hub: tells of changes.
            get: reads a job, and says it in the contract's words.
            previews: makes previews; None where nothing does.
            preview_seconds: the least time between two previews.
            silence: the longest time without a message.
        """
        self._hub = hub
        self._get = get
        self._previews = previews
        self._preview_seconds = preview_seconds
        self._silence = silence

    async def watch(
        self, job_id: str, *, since: int, rows: bool, previews: bool
    ) -> AsyncGenerator[WatchJobResponse, None]:
        """Yields what happens to a job; ends after its final state.

        Args:
            job_id: which.
            since: a version that was seen; nothing is sent of it and those before, unless the job has ended.
            rows: also the tokens that are drawn.
            previews: also pictures that are not finished.

        Raises:
            JobNotFoundError: there is no such job, or not any more.
        """
        loop = asyncio.get_running_loop()
        made: deque[Preview] = deque()
        making: asyncio.Task[None] | None = None
        with self._hub.watch(job_id, rows=rows) as watcher:
            try:
                while True:
                    quiet_until = loop.time() + self._silence
                    watcher.news.clear()
                    if drawn := _rows(watcher):
                        yield WatchJobResponse(rows=drawn)
                    while made:
                        yield WatchJobResponse(preview=made.popleft())
                    if watcher.changed:
                        watcher.changed = False
                        snapshot, message = await self._get(job_id)
                        watcher.version = snapshot.job.version
                        final = is_final(snapshot.job)
                        if final or snapshot.job.version > since:
                            since = snapshot.job.version
                            yield WatchJobResponse(job=message)
                        if final:
                            return
                        if previews and self._previews and making is None:
                            given = snapshot.job.given
                            making = asyncio.create_task(
                                self._make(self._previews, job_id, given, made, watcher.news)
                            )
                    try:
                        async with asyncio.timeout_at(quiet_until):
                            await watcher.news.wait()
                    except TimeoutError:
                        yield WatchJobResponse()
            finally:
                if making is not None:
                    making.cancel()
                    with suppress(asyncio.CancelledError):
                        await making

    async def _make(
        self, previews: Previews, job_id: str, given: list[int], made: deque[Preview], news: asyncio.Event
    ) -> None:
        """Makes previews for ever; what is not sent when there are newer ones is left out."""
        shown: dict[int, int] = {}
        while True:
            await asyncio.sleep(self._preview_seconds)
            try:
                newest = await previews.of(job_id, given, shown)
            except SmaltiError as error:
                log.info("previews are left out: %s", error, extra={"job": job_id})
                continue
            if newest:
                shown |= {preview.candidate: preview.rows_drawn for preview in newest}
                made.clear()
                made.extend(newest)
                news.set()


def _rows(watcher: Watcher) -> RowsDrawn | None:
    """Takes what was drawn of each candidate since the last time: the runs that follow each other, as one."""
    runs: dict[int, Run] = {}
    while watcher.runs:
        candidate, start, tokens = watcher.runs[0]
        before = runs.get(candidate)
        if before is not None and before[1] + len(before[2]) != start:
            watcher.news.set()  # At most one run for each candidate; the rest is sent after it.
            break
        runs[candidate] = (candidate, before[1], before[2] + tokens) if before else (candidate, start, tokens)
        watcher.runs.popleft()
    if not runs:
        return None
    return RowsDrawn(
        runs=[
            TokenRun(candidate=candidate, start=start, tokens=tokens)
            for candidate, start, tokens in runs.values()
        ]
    )
