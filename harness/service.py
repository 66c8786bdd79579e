"""Parts of a service in this process: the argument of a `build`, and calls to a servicer over 127.0.0.1."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from smalti.messages import MessageSettings
from smalti.queue import BrokerPublisher, BrokerSettings
from smalti.rpc.channel import channel
from smalti.rpc.errors import translated
from smalti.rpc.identity import Authenticate
from smalti.rpc.server import Register, serve
from smalti.rpc.settings import RpcSettings
from smalti.service import Process, ServiceSettings, Telemetry
from smalti.storage import MemoryStore
from smalti.telemetry import Metrics

ONCE = RpcSettings(attempts=1, grace=0)


def bare_process(store: MemoryStore | None = None, name: str = "ranker") -> Process:
    """Returns a process with a store in memory and without a broker."""
    broker = BrokerSettings(timeout=0.2, drain=1.0)
    return Process(
        name=name,
        settings=ServiceSettings(),
        rpc=ONCE,
        broker=broker,
        messages=MessageSettings(),
        publisher=BrokerPublisher(broker),
        store=store or MemoryStore(),
        telemetry=Telemetry(Metrics(name)),
    )


@asynccontextmanager
async def called(
    register: Register, authenticate: Authenticate | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    """Serves on a free port; yields a channel to it."""
    async with (
        await serve(register, healthy=lambda: True, settings=ONCE, authenticate=authenticate) as server,
        channel(server.address, ONCE) as to_server,
    ):
        yield to_server


async def answer(call: Any) -> Any:
    """Awaits the response of a call, or all responses of a stream; raises the errors of `smalti.errors`."""
    with translated():
        return [each async for each in call] if hasattr(call, "__aiter__") else await call
