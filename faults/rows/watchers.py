"""One client that opens very many streams."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any, Final

import grpc

from faults.matrix import Trial, row
from faults.system import PATIENCE, System
from harness.waiting import wait_until
from smalti.rpc.places import CLIENT
from smalti.v1.image_pb2 import WatchJobRequest
from smalti.v1.image_pb2_grpc import ImageServiceStub

WATCHERS: Final = 1200
CONNECTIONS: Final = 20
NAMED: Final = 150
MAX_SECONDS: Final = 10.0
_HELD: Final = "row 17 is watched"


@row(
    "17",
    "1200 streams of WatchJob over 20 connections, and 150 of one client that the web service names",
    "those above the limits are refused at once; everybody else draws, looks, and cancels",
    settings={"SMALTI_GATEWAY_LEASE": "120"},
    held=("generator",),
)
def thousand_watchers(trial: Trial) -> None:
    """Watches a job that does not end, from many streams, and calls everything else."""
    system, account = trial.system, trial.account
    watched = account.submit(_HELD)
    named = Crowd(system, watched.job, NAMED, client="192.0.2.7")
    crowd = Crowd(system, watched.job, WATCHERS, after=named)
    with ThreadPoolExecutor(1) as threads:
        # One event loop for all: gRPC does not work well in several.
        watching = threads.submit(asyncio.run, _watch_together(named, crowd))
        try:
            wait_until(lambda: crowd.answered >= WATCHERS, PATIENCE)
            slowest = 0.0
            for number in range(trial.jobs):
                began = time.monotonic()
                other = account.submit(f"row 17 {number}")
                with system.client() as client:
                    client.get(other.job)
                    if number == 0:
                        client.cancel(other.job)
                slowest = max(slowest, time.monotonic() - began)
        finally:
            for each in (named, crowd):
                each.over.set()
            watching.result()
    trial.notes.append(
        f"{named.open} of {NAMED} and {crowd.open} of {WATCHERS} streams were open; "
        f"the slowest turn of other calls: {slowest:.1f} s"
    )
    trial.expect(named.open == 100, f"the named client has {named.open} streams, not 100")
    trial.expect(crowd.open == 900, f"the others have {crowd.open} streams, not 900")
    trial.expect(slowest < MAX_SECONDS, f"creating, looking and cancelling took {slowest:.1f} s")
    system.release("generator")
    cancelled = [each for each in account.submissions if each.prompt == "row 17 0"]
    trial.expect_states("cancelled", *cancelled)
    trial.expect_states("succeeded", *(each for each in account.submissions if each not in cancelled))


async def _watch_together(*crowds: "Crowd") -> None:
    await asyncio.gather(*(crowd.watch() for crowd in crowds))


class Crowd:
    """Streams that watch a job, as long as they may."""

    def __init__(
        self, system: System, job: str, count: int, *, client: str = "", after: "Crowd | None" = None
    ) -> None:
        """Describes them.

        Args:
            system: the system.
            job: the job to watch.
            count: the number of streams.
            client: the client that is named for them; empty for none.
            after: those that come before them; None if they are the first.
        """
        self.open = 0
        self.refused = 0
        self.over = threading.Event()
        self._url = system.gateway.url
        self._job = job
        self._count = count
        self._after = after
        self._metadata = ((CLIENT, client),) if client else ()

    @property
    def answered(self) -> int:
        """Number of streams that are open, or were refused."""
        return self.open + self.refused

    async def watch(self) -> None:
        """Opens the streams, and keeps them until they are told that it is over."""
        while self._after and self._after.answered < self._after._count and not self.over.is_set():
            await asyncio.sleep(0.1)
        async with AsyncExitStack() as stack:
            channels = [
                # Without this, channels to the same address share a connection.
                await stack.enter_async_context(
                    grpc.aio.insecure_channel(self._url, options=[("grpc.use_local_subchannel_pool", 1)])
                )
                for _ in range(CONNECTIONS)
            ]
            stubs: list[Any] = [ImageServiceStub(each) for each in channels]
            tasks = [
                asyncio.create_task(self._watch(stubs[number % CONNECTIONS])) for number in range(self._count)
            ]
            while not self.over.is_set():
                await asyncio.sleep(0.1)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, stub: Any) -> None:
        stream = stub.WatchJob(WatchJobRequest(job_id=self._job), metadata=self._metadata)
        is_open = False
        try:
            async for _ in stream:
                self.open += not is_open
                is_open = True
        except grpc.aio.AioRpcError as error:
            # grpc.aio's client tells a few refusals in a thousand as CANCELLED, also with a bare server; blocking
            # clients do not.
            if error.code() not in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED):
                raise
            self.refused += not self.over.is_set()
