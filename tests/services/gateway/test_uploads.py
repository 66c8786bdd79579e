"""Uploads of files that fail: what is told, and that nothing is left; and uploads to the store itself."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import pytest

from harness.file_calls import (
    CONTENT,
    delete,
    download,
    files,
    listed,
    messages,
    nothing_left,
    objects_of,
    problem,
    upload,
)
from harness.gateway import FaultyStore, GatewayHarness, MakeGateway
from harness.grpc_server import asynchronous
from harness.service import answer
from smalti.errors import (
    InvalidInputError,
    OverloadedError,
    UnavailableError,
    WrongStateError,
)
from smalti.services.gateway.api import file_servicer
from smalti.services.gateway.files import NewFile, contents
from smalti.storage import MemoryStore
from smalti.v1 import file_pb2

HOUR, DAY = 3600.0, 24 * 3600.0
UPLOADING, READY = file_pb2.FILE_STATE_UPLOADING, file_pb2.FILE_STATE_READY


class UrlStore(MemoryStore):
    """A store with upload URLs; a test puts the object itself."""

    def presigned_upload(self, key: str, *, seconds: float) -> str:
        return f"http://store.invalid/{key}"


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        ([], "start"),
        ([file_pb2.UploadFileRequest(data=b"x")], "start"),
        (list(messages(b"x", name="")), "start.name"),
        (list(messages(b"x", name="x" * 256)), "start.name"),
        (list(messages(b"x", name="a\0b")), "start.name"),
        (list(messages(b"x", purpose="x" * 65)), "start.purpose"),
        (list(messages(b"x", seconds=3599)), "start.retention"),
        (list(messages(b"x", seconds=365 * 24 * 3600 + 1)), "start.retention"),
        (list(messages(CONTENT, piece=2**20 + 1)), "data"),
        ([*messages(b"x"), *messages(b"x")], "data"),
        (list(messages(b"x" * 2049, piece=1000)), "data"),
    ],
)
@asynchronous
async def test_unusable_upload_stores_nothing(
    make_gateway: MakeGateway, requests: list[Any], field: str
) -> None:
    gateway = make_gateway(file_bytes=2048 if len(requests) == 4 else 2**22)
    async with files(gateway) as stub:
        with pytest.raises(InvalidInputError) as caught:
            await answer(stub.UploadFile(iter(requests)))
        assert caught.value.field == field
        assert await listed(stub) == []
    assert await nothing_left(gateway)


@asynchronous
async def test_upload_that_is_broken_off_leaves_nothing(gateway: GatewayHarness) -> None:
    async with files(gateway) as stub:
        arrived = asyncio.Event()

        async def half() -> AsyncIterator[Any]:
            for message in list(messages())[:2]:
                yield message
            arrived.set()
            await asyncio.Event().wait()

        call = stub.UploadFile(half())
        await arrived.wait()
        while not await listed(stub):
            await asyncio.sleep(0.01)
        assert [each.state for each in await listed(stub)] == [UPLOADING]
        call.cancel()
        while await listed(stub):
            await asyncio.sleep(0.01)
    assert await nothing_left(gateway)


@asynchronous
async def test_upload_whose_gateway_was_killed_is_given_up(gateway: GatewayHarness) -> None:
    row, _ = gateway.gateway.files.reserve(NewFile(tenant="default", name="x", purpose="", retention=DAY))
    gateway.store.put(contents.FileKeys(row.id).content("0" * 64), b"what it had written")
    async with files(gateway) as stub:
        assert [each.state for each in await listed(stub)] == [UPLOADING]
        with pytest.raises(WrongStateError, match="has no content yet"):
            await download(stub, row.id)
        gateway.clock.advance(DAY - 1)
        gateway.gateway.remove_files()
        assert len(await listed(stub)) == 1
        gateway.clock.advance(2)
        gateway.gateway.remove_files()
        assert await listed(stub) == []
    assert objects_of(gateway) == []


@asynchronous
async def test_store_or_disk_that_is_full(make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FaultyStore()
    gateway = make_gateway(store=store)
    async with files(gateway) as stub:
        store.full = True
        with pytest.raises(UnavailableError, match=r"^the object store|^the store"):
            await upload(stub)
        store.full = False

        def full(self: Any, data: bytes) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(tempfile, "NamedTemporaryFile", FullFile)
            with pytest.raises(
                UnavailableError, match="cannot keep the file while it arrives: No space left"
            ):
                await upload(stub)
        assert await listed(stub) == []
        await upload(stub)
    assert len(objects_of(gateway)) == 1


class FullFile:
    """A temporary file on a disk that is full."""

    name = "/nowhere"

    def __init__(self, **options: Any) -> None:
        pass

    def write(self, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        pass


@asynchronous
async def test_number_of_uploads_is_bounded(gateway: GatewayHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_servicer, "MAX_UPLOADS", 1)
    monkeypatch.setattr(file_servicer, "IDLE_SECONDS", 0.5)
    async with files(gateway) as stub:

        async def slow() -> AsyncIterator[Any]:
            yield next(messages())
            await asyncio.Event().wait()

        call = stub.UploadFile(slow())
        while not await listed(stub):
            await asyncio.sleep(0.01)
        with pytest.raises(OverloadedError, match="1 files already arrive"):
            await upload(stub)
        assert "nothing has arrived for 0.5 s" in str(await problem(answer(call)))
        await upload(stub)


@asynchronous
async def test_client_that_sends_hardly_anything_holds_no_place(
    gateway: GatewayHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_servicer, "IDLE_SECONDS", 0.5)

    async def slow() -> AsyncIterator[Any]:
        yield next(messages())
        while True:
            yield file_pb2.UploadFileRequest(data=b"x")
            await asyncio.sleep(0.01)

    async with files(gateway) as stub:
        assert "bytes have arrived in" in str(await problem(answer(stub.UploadFile(slow()))))
        assert await listed(stub) == []


@asynchronous
async def test_upload_to_the_store_itself(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(store=UrlStore(), file_bytes=2**21)
    start = file_pb2.FileStart(name="prompts.txt")

    async def create(stub: Any) -> tuple[str, str]:
        made = await answer(stub.CreateFile(file_pb2.CreateFileRequest(start=start)))
        assert made.file.state == UPLOADING
        assert made.upload_expire_time.seconds - made.file.create_time.seconds == HOUR
        return made.file.id, made.upload_url.removeprefix("http://store.invalid/")

    async with files(gateway) as stub:
        file_id, key = await create(stub)
        finish = file_pb2.FinishFileRequest(file_id=file_id)
        with pytest.raises(WrongStateError, match="has no content yet; send it to the upload URL first"):
            await answer(stub.FinishFile(finish))
        gateway.store.put(key, CONTENT)
        done = [(await answer(stub.FinishFile(finish))).file for _ in range(2)]
        assert done[0] == done[1]
        assert (done[0].state, done[0].size_bytes) == (READY, len(CONTENT))
        # Whoever has the URL may write again, which changes nothing.
        gateway.store.put(key, b"another content")
        assert (await answer(stub.FinishFile(finish))).file == done[0]
        assert await download(stub, file_id) == CONTENT
        large, key = await create(stub)
        gateway.store.put(key, bytes(2**21 + 1))
        with pytest.raises(WrongStateError, match="must have at most 2097152 bytes; divide it"):
            await answer(stub.FinishFile(file_pb2.FinishFileRequest(file_id=large)))
        # The URL of a file that is deleted is valid for a while: what is written there is deleted, too.
        late, key = await create(stub)
        await delete(stub, late)
        gateway.gateway.remove_files()
        gateway.store.put(key, b"late")
        await delete(stub, file_id)
        await delete(stub, large)
    assert await nothing_left(gateway)


@asynchronous
async def test_store_without_urls(gateway: GatewayHarness) -> None:
    async with files(gateway) as stub:
        start = file_pb2.FileStart(name="prompts.txt")
        made = await answer(stub.CreateFile(file_pb2.CreateFileRequest(start=start)))
        assert not made.upload_url
        assert not made.HasField("upload_expire_time")
        assert await listed(stub) == []
