"""Which jobs have a client that waits for them, and what becomes of those that are left."""

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from smalti.client import AsyncClient
from smalti.errors import SmaltiError
from smalti.services.web.jobs.following import ClientGoneError
from smalti.telemetry import Metrics

log = logging.getLogger(__name__)

MAX_DELIVERED: Final = 10_000
"""Number of delivered jobs that are remembered."""


class Attendance:
    """The clients of this process that wait for jobs. Only the event loop may use it."""

    def __init__(self, client: AsyncClient, metrics: Metrics, seconds: float) -> None:
        """Begins without jobs.

        Args:
            client: cancels the jobs that are left.
            metrics: counts them.
            seconds: time after which a job is cancelled that its client has left.
        """
        self._client = client
        self._metrics = metrics
        self._seconds = seconds
        self._waiting: Counter[str] = Counter()
        self._left: dict[str, asyncio.Task[None]] = {}
        self._delivered: OrderedDict[str, None] = OrderedDict()

    @contextmanager
    def attend(self, job_id: str, *, keep: bool = False) -> Iterator[None]:
        """Waits for a job during the block. If the client goes away, and does not come back, the job is cancelled.

        Args:
            job_id: the job.
            keep: let the job continue without its client.

        Raises:
            ClientGoneError: the block raised it.
        """
        self._come_back(job_id)
        self._waiting[job_id] += 1
        gone = False
        try:
            yield
            self._remember_delivered(job_id)
        except (ClientGoneError, asyncio.CancelledError, GeneratorExit):
            gone = True
            raise
        finally:
            self._waiting[job_id] -= 1
            if not self._waiting[job_id]:
                del self._waiting[job_id]
                if gone and not keep:
                    self._left[job_id] = asyncio.create_task(self._cancel_later(job_id))

    def is_taken(self, job_id: str) -> bool:
        """Returns whether another client of this process waits for a job, or has its pictures."""
        return job_id in self._waiting or job_id in self._delivered

    def is_left(self, job_id: str) -> bool:
        """Returns whether the client of a job has gone away, and the job is not cancelled yet."""
        return job_id in self._left

    async def close(self) -> None:
        """Stops waiting for clients to come back; their jobs continue, since they may come back to another process."""
        left = list(self._left.values())
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _come_back(self, job_id: str) -> None:
        task = self._left.pop(job_id, None)
        if task is not None:
            task.cancel()

    def _remember_delivered(self, job_id: str) -> None:
        self._delivered[job_id] = None
        while len(self._delivered) > MAX_DELIVERED:
            self._delivered.popitem(last=False)

    async def _cancel_later(self, job_id: str) -> None:
        await asyncio.sleep(self._seconds)
        # From here on a client that comes back finds the job cancelled, and gets a new one.
        del self._left[job_id]
        try:
            await self._client.cancel(job_id)
        except SmaltiError as error:
            log.warning(
                "a job whose client went away could not be cancelled: %s", error, extra={"job": job_id}
            )
            return
        self._metrics.add("cancelled_total", where="client gone")
        log.info("cancelled, since its client went away", extra={"job": job_id})
