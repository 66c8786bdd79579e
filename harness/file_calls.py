"""Calls of the file service of a gateway, for tests."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from harness.gateway import GatewayHarness
from harness.gateway_calls import served
from harness.service import answer
from smalti.errors import SmaltiError
from smalti.v1 import file_pb2
from smalti.v1.file_pb2_grpc import FileServiceStub

CONTENT = bytes(range(256)) * 5000
"""More than a message."""


@asynccontextmanager
async def files(gateway: GatewayHarness, **options: Any) -> AsyncIterator[Any]:
    """Serves a gateway; yields a stub for its files."""
    async with served(gateway, stub=FileServiceStub, **options) as stub:
        yield stub


def messages(content: bytes = CONTENT, piece: int = 2**20, **start: Any) -> Iterator[Any]:
    """Yields the messages of an upload."""
    start = {"name": "prompts.txt", "purpose": "batch", **start}
    if seconds := start.pop("seconds", None):
        start["retention"] = {"seconds": seconds}
    yield file_pb2.UploadFileRequest(start=file_pb2.FileStart(**start))
    for position in range(0, len(content), piece):
        yield file_pb2.UploadFileRequest(data=content[position : position + piece])


async def upload(stub: Any, content: bytes = CONTENT, **start: Any) -> file_pb2.File:
    """Uploads a file."""
    return (await answer(stub.UploadFile(messages(content, **start)))).file


async def download(stub: Any, file_id: str, offset: int = 0) -> bytes:
    """Returns the content of a file."""
    request = file_pb2.DownloadFileRequest(file_id=file_id, offset=offset)
    return b"".join(piece.data for piece in await answer(stub.DownloadFile(request)))


async def get(stub: Any, file_id: str) -> file_pb2.File:
    """Gets a file."""
    return (await answer(stub.GetFile(file_pb2.GetFileRequest(file_id=file_id)))).file


async def listed(stub: Any, **fields: Any) -> list[file_pb2.File]:
    """Returns a page of files."""
    return list((await answer(stub.ListFiles(file_pb2.ListFilesRequest(**fields)))).files)


async def delete(stub: Any, file_id: str) -> None:
    """Deletes a file."""
    await answer(stub.DeleteFile(file_pb2.DeleteFileRequest(file_id=file_id)))


async def compose(stub: Any, ids: Sequence[str], **start: Any) -> file_pb2.File:
    """Joins files."""
    begin = file_pb2.FileStart(**{"name": "whole.txt", "purpose": "batch", **start})
    return (await answer(stub.ComposeFile(file_pb2.ComposeFileRequest(start=begin, file_ids=ids)))).file


async def problem(call: Any) -> SmaltiError:
    """Returns the error that a call ends with."""
    with pytest.raises(SmaltiError) as caught:
        await call
    return caught.value


def objects_of(gateway: GatewayHarness) -> list[str]:
    """Returns the keys of all objects."""
    return [info.key for info in gateway.store.objects()]


async def nothing_left(gateway: GatewayHarness) -> bool:
    """Returns whether there is neither a row nor an object of a file once everything that is due was done."""
    gateway.clock.advance(2 * 24 * 3600.0)
    await asyncio.to_thread(gateway.gateway.remove_files)
    return not objects_of(gateway) and not gateway.gateway.files.due(1)
