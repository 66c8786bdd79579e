"""Calls that send a stream: what the server answers before it has read everything."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc.aio._call import StreamUnaryCall

from harness.grpc_server import asynchronous
from harness.service import ONCE, answer
from smalti.errors import SmaltiError
from smalti.rpc.channel import channel
from smalti.v1 import batch_pb2, decoder_pb2, encoder_pb2, file_pb2, generator_pb2, image_pb2
from smalti.v1.file_pb2_grpc import FileServiceStub


async def refuse(requests: AsyncIterator[Any], context: Any) -> None:
    await anext(aiter(requests))
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "refused")


@asynccontextmanager
async def serving(upload: Callable[[AsyncIterator[Any], Any], Awaitable[Any]]) -> AsyncIterator[Any]:
    """Serves UploadFile with nothing around it, which is the fastest; yields a stub."""
    handler = grpc.stream_unary_rpc_method_handler(
        upload,
        request_deserializer=file_pb2.UploadFileRequest.FromString,
        response_serializer=file_pb2.UploadFileResponse.SerializeToString,
    )
    server = grpc.aio.server()
    server.add_registered_method_handlers("smalti.v1.FileService", {"UploadFile": handler})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with channel(f"127.0.0.1:{port}", ONCE) as to_server:
        yield FileServiceStub(to_server)
    await server.stop(0)


@asynchronous
async def test_refusal_is_told_however_much_was_being_sent() -> None:
    found: Counter[str] = Counter()

    async def upload(stub: Any) -> None:
        pieces = (file_pb2.UploadFileRequest(data=bytes(5000)) for _ in range(60))
        try:
            await answer(stub.UploadFile(pieces))
        except SmaltiError as error:
            found[str(error)] += 1

    # In most runs, a few of so many calls are refused at the moment at which a message fails.
    async with serving(refuse) as stub:
        for _ in range(8):
            await asyncio.gather(*(upload(stub) for _ in range(40)))
    assert found == {"refused": 320}


@asynchronous
async def test_refusal_is_told_if_a_message_fails_after_it() -> None:
    conduct = StreamUnaryCall._conduct_rpc

    async def failing(call: Any) -> Any:
        response = await conduct(call)
        call._cython_call.set_internal_error("as grpc.aio does when a message fails")
        return response

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StreamUnaryCall, "_conduct_rpc", failing)
        async with serving(refuse) as stub:
            call = stub.UploadFile(iter([file_pb2.UploadFileRequest()]))
            with pytest.raises(SmaltiError, match=r"^refused$"):
                await answer(call)
            assert await call.code() is grpc.StatusCode.FAILED_PRECONDITION


@asynchronous
async def test_answer_to_a_part_of_a_stream_is_the_response() -> None:
    sent = asyncio.Event()

    async def take(requests: AsyncIterator[Any], context: Any) -> Any:
        await anext(aiter(requests))
        return file_pb2.UploadFileResponse(file=file_pb2.File(id="file-1"))

    async def endless() -> AsyncIterator[Any]:
        try:
            while True:
                yield file_pb2.UploadFileRequest(data=bytes(5000))
        finally:
            sent.set()

    async with serving(take) as stub:
        assert (await answer(stub.UploadFile(endless()))).file.id == "file-1"
        await sent.wait()  # Nothing of the call goes on.


@asynchronous
async def test_failure_of_the_iterator_is_raised_and_the_call_is_cancelled() -> None:
    ended = asyncio.Event()

    async def wait(requests: AsyncIterator[Any], context: Any) -> None:
        try:
            async for _ in requests:
                pass
        finally:
            ended.set()

    def broken() -> Iterator[Any]:
        yield file_pb2.UploadFileRequest(data=b"x")
        raise OSError("the disk is gone")

    async with serving(wait) as stub:
        with pytest.raises(OSError, match="the disk is gone"):
            await stub.UploadFile(broken())
        await ended.wait()


def test_no_call_of_the_contract_takes_a_stream_and_returns_one() -> None:
    """`_StreamSender` is for calls with one response; a call with streams in both directions needs its own."""
    services = [
        service
        for module in (batch_pb2, decoder_pb2, encoder_pb2, file_pb2, generator_pb2, image_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
    ]
    streaming = [method for service in services for method in service.methods if method.client_streaming]
    assert [method.name for method in streaming] == ["UploadFile"]
    assert not any(method.server_streaming for method in streaming)
