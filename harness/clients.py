"""Calls of either client in one way, for tests that both must pass."""

import asyncio
import inspect
from typing import Any

from harness.image_service import ROWS
from smalti.client import AsyncClient, Client
from smalti.rpc.settings import RpcSettings
from smalti.v1.job_pb2 import Job

ONCE = RpcSettings(attempts=1)
"""Without gRPC's own retries, so that every retry is the client's."""
ALL_VERSIONS = list(range(1, ROWS + 4))
"""The versions of a job of the played gateway, from its creation to its end."""


def versions(jobs: list[Job]) -> list[int]:
    """Returns the versions of a job, as they were received."""
    return [job.version for job in jobs]


class AnyClient:
    """Calls either client in the same way: runs coroutines, and returns iterators as lists."""

    def __init__(self, kind: str, address: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop() if kind == "async" else None
        self.client: Any
        if self._loop is None:
            self.client = Client(address, **options)
        else:

            async def make() -> AsyncClient:
                return AsyncClient(address, **options)

            self.client = self._loop.run_until_complete(make())

    def __getattr__(self, name: str) -> Any:
        return self._calling(self.client, name)

    @property
    def batches(self) -> Any:
        """The batches of the client, called in the same way."""
        return _Part(self, self.client.batches)

    @property
    def files(self) -> Any:
        """The files of the client, called in the same way."""
        return _Part(self, self.client.files)

    def _calling(self, part: Any, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            result = getattr(part, name)(*arguments, **named)
            if inspect.isasyncgen(result):
                result = self._collect(result)
            if self._loop is not None:
                return self._loop.run_until_complete(result)
            return list(result) if inspect.isgenerator(result) else result

        return call

    @staticmethod
    async def _collect(items: Any) -> list[Any]:
        return [item async for item in items]

    def end(self) -> None:
        """Closes the client, and its event loop if it has one."""
        self.close()
        if self._loop is not None:
            self._loop.close()


class _Part:
    """A part of a client, such as its batches."""

    def __init__(self, client: AnyClient, part: Any) -> None:
        self._client = client
        self._part = part

    def __getattr__(self, name: str) -> Any:
        return self._client._calling(self._part, name)
