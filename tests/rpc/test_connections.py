"""The connections of a gRPC server: how many there may be, and what they cost while nothing is said."""

import asyncio

import grpc
import pytest

from harness.grpc_server import asynchronous, served
from smalti.rpc.server import HANDSHAKE_SECONDS
from smalti.rpc.settings import RpcSettings


async def closed(connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> int:
    """Returns how many connections the server has closed; it sends its settings on the others."""
    found = 0
    for reader, _ in connections:
        try:
            while await asyncio.wait_for(reader.read(4096), 0.5):
                pass
            found += 1
        except ConnectionError:
            found += 1
        except TimeoutError:
            pass
    return found


@asynchronous
async def test_connections_above_the_limit_are_closed_at_once() -> None:
    async with served(RpcSettings(connections=3)) as (server, _):
        idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(8)]
        assert await closed(idle) == 5
        for _, writer in idle:
            writer.close()
            await writer.wait_closed()
        async with grpc.aio.insecure_channel(server.address) as channel:
            await asyncio.wait_for(channel.channel_ready(), 30)


@pytest.mark.slow
@asynchronous
async def test_connection_that_says_nothing_is_closed() -> None:
    async with served(RpcSettings(health_port=0)) as (server, _):
        assert server.health_port is not None
        idle = [
            await asyncio.open_connection("127.0.0.1", port) for port in (server.port, server.health_port)
        ]
        await asyncio.sleep(HANDSHAKE_SECONDS + 2)
        assert await closed(idle) == 2
        for _, writer in idle:
            writer.close()
