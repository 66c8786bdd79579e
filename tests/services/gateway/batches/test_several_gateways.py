"""Batches of several gateways on one PostgreSQL: one plans, one sends, and another goes on when it dies."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from harness.batches import BatchHarness
from harness.gateway import GatewayHarness, emptied_database
from harness.grpc_server import asynchronous
from harness.killing import Killed, killed_at
from harness.servers import PostgresServer
from harness.waiting import wait_until
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.presence import Presence, Role
from smalti.services.gateway.database.tables import Batch
from smalti.storage import MemoryStore
from smalti.v1 import batch_pb2
from tests.services.gateway.batches.test_batch_calls import served
from tests.services.gateway.conftest import needs_postgres

pytestmark = [needs_postgres, pytest.mark.server]


@pytest.fixture
def two(postgres: PostgresServer, tiny: ModelFolder) -> Iterator[tuple[BatchHarness, BatchHarness]]:
    """Two gateways; the first one has the role of sending shards."""
    if not postgres.running:
        postgres.start()
    store = MemoryStore()
    with emptied_database(Database(postgres.url)), ExitStack() as stack:

        def gateway() -> GatewayHarness:
            database = stack.enter_context(closing(Database(postgres.url)))
            presence = Presence(database)
            made = GatewayHarness(database, ModelSpec.load(tiny), store=store, presence=presence, write=3)
            stack.callback(made.close)
            stack.callback(presence.stop, 10)
            presence.start()
            return made

        gateways = [gateway()]
        wait_until(lambda: holds(gateways[0], Role.SHARDS))
        gateways.append(gateway())
        yield BatchHarness(gateways[0]), BatchHarness(gateways[1])


def holds(gateway: GatewayHarness, role: Role) -> bool:
    """Returns whether a gateway has a role and is connected."""
    presence = gateway.gateway.context.presence
    return presence is not None and bool(presence.listening) and presence.holds(role)


def test_only_the_gateway_with_the_role_sends(two: tuple[BatchHarness, BatchHarness]) -> None:
    first, second = two
    first.planned(8)
    assert second.send() == []
    assert len(first.send()) == 2


def test_another_gateway_goes_on_with_the_plan_of_one_that_dies(
    two: tuple[BatchHarness, BatchHarness],
) -> None:
    first, second = two
    batch = first.create(8)
    with pytest.raises(Killed), killed_at("gateway.after-checked"):
        first.room.plan()
    database = first.gateway.gateway.context.database
    with database.write() as session:  # One that is killed does not give its claim back.
        row = session.get_one(Batch, batch)
        row.owner, row.owned_until = database.id, 2**60
    second.room.plan()
    assert second.state(batch) == "planning"
    presence = first.gateway.gateway.context.presence
    assert presence is not None
    presence.stop(10)

    def planned() -> bool:
        second.room.plan()
        return second.state(batch) == "running"

    wait_until(planned)  # No time passes on its clock.
    wait_until(lambda: holds(second.gateway, Role.SHARDS))
    assert len(second.send()) == 2


@asynchronous
async def test_watch_at_another_gateway_shows_every_change(two: tuple[BatchHarness, BatchHarness]) -> None:
    first, second = two
    batch = first.create(8)
    seen: list[int] = []

    async def follow(stub: Any) -> None:
        async for each in stub.WatchBatch(batch_pb2.WatchBatchRequest(batch_id=batch)):
            if each.HasField("batch"):
                seen.append(each.batch.state)

    async def until_seen(state: int) -> None:
        async with asyncio.timeout(20):
            while state not in seen:
                await asyncio.sleep(0.02)

    async with served(second.gateway) as stub:
        following = asyncio.create_task(follow(stub))
        await until_seen(batch_pb2.BATCH_STATE_PLANNING)
        await asyncio.to_thread(first.room.plan)
        await until_seen(batch_pb2.BATCH_STATE_RUNNING)
        await asyncio.to_thread(first.run)
        await asyncio.wait_for(following, 20)
    assert seen[-1] == batch_pb2.BATCH_STATE_SUCCEEDED
