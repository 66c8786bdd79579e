"""The calls of BatchService: what they accept, refuse, and show, and to whom."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from harness.batches import BatchHarness
from harness.gateway import GatewayHarness, MakeGateway
from harness.grpc_server import asynchronous
from harness.policy import PolicyProcess
from harness.service import answer, called
from smalti.batches import BatchKeys
from smalti.errors import (
    BatchNotFoundError,
    InvalidInputError,
    NotSupportedError,
    PermissionDeniedError,
    RequestIdReusedError,
    StoredFileNotFoundError,
    WrongStateError,
)
from smalti.services.gateway.api.batches import BatchServicer
from smalti.services.gateway.identity import Role, TenantRepository
from smalti.settings import Auth
from smalti.storage import digest
from smalti.v1 import batch_pb2, job_pb2
from smalti.v1.batch_pb2_grpc import BatchServiceStub, add_BatchServiceServicer_to_server

REQUEST_ID = "2f1c7a52-6f3e-4c1a-9a53-0a2a8a3c5a11"


@asynccontextmanager
async def served(gateway: GatewayHarness, *ways: Auth, **options: Any) -> AsyncIterator[Any]:
    """Serves the batches of a gateway; yields a stub for it."""
    servicer = BatchServicer(gateway.gateway, **options)
    async with called(
        lambda server: add_BatchServiceServicer_to_server(servicer, server), gateway.gatekeeper(*ways)
    ) as channel:
        yield BatchServiceStub(channel)


def create_request(key: str = "inputs/prompts.txt", **fields: Any) -> batch_pb2.CreateBatchRequest:
    """Returns a request for shards of 4 prompts, with 2 pictures of 3 candidates for each."""
    fields.setdefault("parameters", job_pb2.ImageParameters(n=2, candidates=3))
    return batch_pb2.CreateBatchRequest(
        input=fields.pop("input", batch_pb2.BatchInput(object_key=key)), shard_prompts=4, **fields
    )


async def create(stub: Any, **fields: Any) -> batch_pb2.Batch:
    """Creates a batch."""
    return (await answer(stub.CreateBatch(create_request(**fields)))).batch


def key_of(gateway: GatewayHarness, tenant: str, roles: Sequence[Role]) -> tuple[tuple[str, str], ...]:
    """Returns the metadata of a caller with a new key."""
    key, _ = gateway.keys.create(tenant, roles)
    return (("authorization", f"Bearer {key}"),)


@asynchronous
async def test_batch_is_created_drawn_and_downloaded(batches: BatchHarness) -> None:
    batches.input([f"prompt {number}" for number in range(10)])
    async with served(batches.gateway) as stub:
        batch = await create(stub, name="ten", labels={"set": "a"}, rank=3)
        assert batch.state == batch_pb2.BATCH_STATE_PLANNING
        assert (batch.name, dict(batch.labels), batch.rank, batch.shard_prompts) == (
            "ten",
            {"set": "a"},
            3,
            4,
        )
        assert (batch.parameters.n, batch.parameters.candidates, batch.parameters.seed) == (2, 3, 0)
        assert batch.picture_format == batch_pb2.PICTURE_FORMAT_PNG
        assert batch.input.format == batch_pb2.BATCH_FORMAT_TEXT
        await asyncio.to_thread(batches.room.plan)
        await asyncio.to_thread(batches.run)
        batch = (await answer(stub.GetBatch(batch_pb2.GetBatchRequest(batch_id=batch.id)))).batch
        assert batch.state == batch_pb2.BATCH_STATE_SUCCEEDED
        progress = batch.progress
        assert (progress.prompts, progress.prompts_drawn, progress.pictures) == (10, 10, 20)
        assert (progress.shards, progress.shards_ended, progress.candidates_generated) == (3, 3, 30)
        names = []
        token = ""
        while True:
            request = batch_pb2.ListBatchFilesRequest(batch_id=batch.id, page_size=4, page_token=token)
            page = await answer(stub.ListBatchFiles(request))
            names += [file.name for file in page.files]
            for file in page.files:
                content = b"".join(
                    [
                        each.data
                        for each in await answer(
                            stub.DownloadBatchFile(
                                batch_pb2.DownloadBatchFileRequest(batch_id=batch.id, name=file.name)
                            )
                        )
                    ]
                )
                assert (len(content), digest(content)) == (file.size_bytes, file.sha256)
            token = page.next_page_token
            if not token:
                break
        assert names == sorted(names)
        assert set(names) == set(batches.files(batch.id))
        part = batch_pb2.DownloadBatchFileRequest(batch_id=batch.id, name="00000.tar", offset=1000)
        rest = b"".join([each.data for each in await answer(stub.DownloadBatchFile(part))])
        assert rest == batches.store.get(f"{BatchKeys(batch.id).prefix}00000.tar")[1000:]
        for name in ("", "nothing.tar", "../shards/00000.jsonl", "a\0b"):
            with pytest.raises(BatchNotFoundError, match="has no file"):
                await answer(
                    stub.DownloadBatchFile(batch_pb2.DownloadBatchFileRequest(batch_id=batch.id, name=name))
                )


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"input": batch_pb2.BatchInput()}, InvalidInputError, r"input.source: must be set"),
        ({"key": "outputs/x.txt"}, InvalidInputError, r"input.object_key: must begin with 'inputs/'"),
        ({"key": "inputs/../x.txt"}, InvalidInputError, r"input.object_key"),
        ({"key": "inputs/nothing.txt"}, StoredFileNotFoundError, r"no object inputs/nothing.txt"),
        ({"key": "inputs/prompts.doc"}, InvalidInputError, r"input.format: 'inputs/prompts.doc' must end in"),
        (
            {"input": batch_pb2.BatchInput(object_key="inputs/prompts.txt", columns={"color": "x"})},
            InvalidInputError,
            r"input.columns: 'color'",
        ),
        ({"parameters": job_pb2.ImageParameters(prompt="a cat")}, InvalidInputError, r"parameters.prompt"),
        ({"parameters": job_pb2.ImageParameters(n=4, candidates=3)}, InvalidInputError, r"parameters.n"),
        ({"rank": 101}, InvalidInputError, r"rank: must be from 0 to 100"),
        ({"slots": -1}, InvalidInputError, r"slots"),
        ({"name": "a\nb"}, InvalidInputError, r"name"),
        ({"request_id": "7"}, InvalidInputError, r"request_id: must be a UUID"),
    ],
)
@asynchronous
async def test_request_that_cannot_be_used_is_refused(
    batches: BatchHarness, fields: dict[str, Any], error: type[Exception], words: str
) -> None:
    batches.input(["a cat"])
    batches.input(["a cat"], "inputs/prompts.doc")
    async with served(batches.gateway) as stub:
        with pytest.raises(error, match=words):
            await create(stub, **fields)
        assert not (await answer(stub.ListBatches(batch_pb2.ListBatchesRequest()))).batches


@asynchronous
async def test_repeated_request_returns_the_first_batch(batches: BatchHarness) -> None:
    batches.input(["a cat"])
    async with served(batches.gateway) as stub:
        first = await create(stub, request_id=REQUEST_ID)
        again = await create(stub, request_id=REQUEST_ID.upper())
        assert again.id == first.id
        with pytest.raises(RequestIdReusedError, match=f"batch {first.id}"):
            await create(stub, request_id=REQUEST_ID, rank=1)


@asynchronous
async def test_batches_are_listed_by_state_and_label(batches: BatchHarness) -> None:
    batches.input(["a cat"])
    async with served(batches.gateway) as stub:
        ids = []
        for number in range(5):
            batches.gateway.clock.advance(1)
            ids.append((await create(stub, labels={"number": str(number), "a/b": "x"})).id)
        await answer(stub.PauseBatch(batch_pb2.PauseBatchRequest(batch_id=ids[1])))

        async def listed(**fields: Any) -> list[str]:
            found: list[str] = []
            request = batch_pb2.ListBatchesRequest(page_size=2, **fields)
            while True:
                page = await answer(stub.ListBatches(request))
                found += [batch.id for batch in page.batches]
                request.page_token = page.next_page_token
                if not request.page_token:
                    return found

        assert await listed() == ids[::-1]
        assert await listed(labels={"number": "3"}) == [ids[3]]
        assert await listed(labels={"number": "3", "a/b": "y"}) == []
        assert await listed(labels={"a/b": "x"}, states=[batch_pb2.BATCH_STATE_PAUSED]) == [ids[1]]


@asynchronous
async def test_watch_shows_every_change_until_the_end(batches: BatchHarness) -> None:
    batches.input([f"prompt {number}" for number in range(10)])
    async with served(batches.gateway, keepalive_seconds=0.05) as stub:
        batch = await create(stub)
        watch = stub.WatchBatch(batch_pb2.WatchBatchRequest(batch_id=batch.id))
        states, heartbeats = [], 0

        async def follow() -> None:
            nonlocal heartbeats
            async for each in watch:
                if each.HasField("batch"):
                    states.append(each.batch.state)
                else:
                    heartbeats += 1

        following = asyncio.create_task(follow())
        await asyncio.to_thread(batches.room.plan)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(batches.run)
        await asyncio.wait_for(following, 20)
    assert states[-1] == batch_pb2.BATCH_STATE_SUCCEEDED
    assert batch_pb2.BATCH_STATE_RUNNING in states
    assert heartbeats


@asynchronous
async def test_pause_resume_cancel_and_delete(batches: BatchHarness) -> None:
    batches.input(["a cat"])
    async with served(batches.gateway) as stub:
        batch = await create(stub)
        paused = (await answer(stub.PauseBatch(batch_pb2.PauseBatchRequest(batch_id=batch.id)))).batch
        assert paused.state == batch_pb2.BATCH_STATE_PAUSED
        resumed = (await answer(stub.ResumeBatch(batch_pb2.ResumeBatchRequest(batch_id=batch.id)))).batch
        assert resumed.state == batch_pb2.BATCH_STATE_PLANNING
        for _ in range(2):
            ended = (await answer(stub.CancelBatch(batch_pb2.CancelBatchRequest(batch_id=batch.id)))).batch
            assert ended.state == batch_pb2.BATCH_STATE_CANCELLED
        with pytest.raises(WrongStateError, match="has ended"):
            await answer(stub.PauseBatch(batch_pb2.PauseBatchRequest(batch_id=batch.id)))
        await answer(stub.DeleteBatch(batch_pb2.DeleteBatchRequest(batch_id=batch.id)))
        with pytest.raises(BatchNotFoundError):
            await answer(stub.GetBatch(batch_pb2.GetBatchRequest(batch_id=batch.id)))
        for batch_id in ("x" * 100, "no\0thing"):
            with pytest.raises(BatchNotFoundError):
                await answer(stub.GetBatch(batch_pb2.GetBatchRequest(batch_id=batch_id)))


@asynchronous
async def test_deployment_with_old_messages_says_what_to_set(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(write=2)
    gateway.store.put("inputs/prompts.txt", b"a cat\n")
    async with served(gateway) as stub:
        with pytest.raises(WrongStateError, match="SMALTI_MESSAGES_WRITE=3"):
            await create(stub)


@asynchronous
async def test_tenants_see_their_own_batches_and_inputs(batches: BatchHarness) -> None:
    gateway = batches.gateway
    TenantRepository(gateway.gateway.context.database, gateway.clock).create("acme")
    batches.input(["a cat"])
    batches.input(["a dog"], "inputs/acme/prompts.txt")
    own = key_of(gateway, "acme", [Role.BATCH])
    other = key_of(gateway, "default", [Role.BATCH])
    drawing = key_of(gateway, "acme", [Role.DRAW])
    admin = key_of(gateway, "default", [Role.ADMIN])
    async with served(gateway, Auth.KEYS) as stub:
        with pytest.raises(PermissionDeniedError, match="needs the role admin or batch"):
            await answer(stub.CreateBatch(create_request("inputs/acme/prompts.txt"), metadata=drawing))
        with pytest.raises(InvalidInputError, match="must begin with 'inputs/acme/'"):
            await answer(stub.CreateBatch(create_request(), metadata=own))
        with pytest.raises(StoredFileNotFoundError):
            await answer(stub.CreateBatch(create_request("inputs/acme/prompts.txt"), metadata=other))
        batch = (
            await answer(stub.CreateBatch(create_request("inputs/acme/prompts.txt"), metadata=own))
        ).batch
        request = batch_pb2.GetBatchRequest(batch_id=batch.id)
        for allowed in (own, drawing, admin):
            assert (await answer(stub.GetBatch(request, metadata=allowed))).batch.id == batch.id
        for call, refused in (
            (stub.GetBatch, request),
            (stub.CancelBatch, batch_pb2.CancelBatchRequest(batch_id=batch.id)),
            (stub.WatchBatch, batch_pb2.WatchBatchRequest(batch_id=batch.id)),
            (stub.ListBatchFiles, batch_pb2.ListBatchFilesRequest(batch_id=batch.id)),
            (stub.DownloadBatchFile, batch_pb2.DownloadBatchFileRequest(batch_id=batch.id, name="x")),
        ):
            with pytest.raises(BatchNotFoundError):
                await answer(call(refused, metadata=other))
        listed = await answer(stub.ListBatches(batch_pb2.ListBatchesRequest(), metadata=other))
        assert not listed.batches


@asynchronous
async def test_policy_that_must_see_pictures_refuses_batches(
    make_gateway: MakeGateway, hook: PolicyProcess
) -> None:
    batches = BatchHarness(make_gateway(write=3, policy_hook=hook.url))
    batches.input(["a cat"])
    async with served(batches.gateway) as stub:
        with pytest.raises(NotSupportedError, match="must see every picture"):
            await create(stub)
