"""WatchBatch: streams a batch after each change, until it has ended."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

from smalti.services.gateway.api.batches.conversion import batch_message, is_final
from smalti.services.gateway.api.watch import KEEPALIVE_SECONDS, SharedReads
from smalti.services.gateway.batches import BatchSnapshot
from smalti.services.gateway.jobs.watchers import WatcherHub
from smalti.v1.batch_pb2 import WatchBatchResponse

MIN_SECONDS: Final = 0.2
"""Minimum time between two states of a batch: many shards may end at the same time."""


class BatchWatchHandler:
    """Streams changes of batches. Only the event loop may use it."""

    def __init__(
        self,
        watchers: WatcherHub,
        get: Callable[[str], Awaitable[BatchSnapshot]],
        *,
        keepalive_seconds: float = KEEPALIVE_SECONDS,
    ) -> None:
        """Creates the handler.

        Args:
            watchers: wakes the streams after changes.
            get: reads a batch.
            keepalive_seconds: maximum time without a message.
        """
        self._watchers = watchers
        self._reads = SharedReads(watchers, get)
        self._keepalive_seconds = keepalive_seconds

    async def watch(self, batch_id: str, *, since: int) -> AsyncGenerator[WatchBatchResponse, None]:
        """Yields the changes of a batch; the last message is its final state.

        Args:
            batch_id: the batch.
            since: a version that the client has seen. Only later versions are sent; the final state is always sent.

        Raises:
            BatchNotFoundError: the batch does not exist, or has been deleted.
        """
        loop = asyncio.get_running_loop()
        with self._watchers.watch(batch_id) as watcher:
            while True:
                quiet_until = loop.time() + self._keepalive_seconds
                watcher.wakeup.clear()
                if watcher.changed:
                    watcher.changed = False
                    snapshot = await self._reads.read(batch_id)
                    watcher.version = snapshot.batch.version
                    final = is_final(snapshot.batch)
                    if final or snapshot.batch.version > since:
                        since = snapshot.batch.version
                        yield WatchBatchResponse(batch=batch_message(snapshot))
                    if final:
                        return
                    await asyncio.sleep(MIN_SECONDS)
                try:
                    async with asyncio.timeout_at(quiet_until):
                        await watcher.wakeup.wait()
                except TimeoutError:
                    yield WatchBatchResponse()
