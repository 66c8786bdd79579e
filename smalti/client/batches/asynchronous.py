"""Batches and files for the client for asyncio."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Unpack

import grpc

from smalti.client.batches.requests import (
    PURPOSE,
    BatchFilters,
    BatchOptions,
    create_batch_request,
    file_start,
    list_batches_request,
    source_of,
)
from smalti.client.batches.streams import CONTENT_SECONDS, BatchWatch, batch_file_content, file_content
from smalti.client.batches.uploads import (
    UPLOAD_SECONDS,
    Source,
    goes_to_store,
    put_to_store,
    size_of,
    upload_requests,
)
from smalti.client.calls import AsyncCalls
from smalti.client.jobs import WATCH_SECONDS
from smalti.errors import SmaltiError
from smalti.files import atomic_path
from smalti.v1.batch_pb2 import (
    Batch,
    BatchFile,
    CancelBatchRequest,
    DeleteBatchRequest,
    GetBatchRequest,
    ListBatchesResponse,
    ListBatchFilesRequest,
    PauseBatchRequest,
    ResumeBatchRequest,
)
from smalti.v1.batch_pb2_grpc import BatchServiceStub
from smalti.v1.file_pb2 import (
    ComposeFileRequest,
    CreateFileRequest,
    DeleteFileRequest,
    File,
    FinishFileRequest,
    GetFileRequest,
    ListFilesRequest,
)
from smalti.v1.file_pb2_grpc import FileServiceStub


class AsyncFiles:
    """The files at a gateway: `AsyncClient.files`."""

    def __init__(self, calls: AsyncCalls, channel: grpc.aio.Channel) -> None:
        """Uses the calls and the channel of a client."""
        self._calls = calls
        self._stub = FileServiceStub(channel)

    async def upload(
        self,
        source: Source,
        *,
        name: str | None = None,
        purpose: str = PURPOSE,
        retention: float | None = None,
    ) -> File:
        """Uploads a file: to the store itself if it is large and the store has URLs, otherwise to the gateway.

        Args:
            source: the path of the file, its content, or an open file that can be sought in.
            name: its name, whose ending tells the format; None for that of the path.
            purpose: what it is for.
            retention: time in seconds for which it is kept; None for the gateway's default.

        Raises:
            SmaltiError: the file cannot be read, it was refused, or the server does not answer.
        """
        start, size = file_start(source, name, purpose, retention), size_of(source)
        if goes_to_store(size):
            created = await self._calls.call(self._stub.CreateFile, CreateFileRequest(start=start))
            if created.upload_url and await asyncio.to_thread(put_to_store, created.upload_url, source, size):
                finish = FinishFileRequest(file_id=created.file.id)
                return (await self._calls.call(self._stub.FinishFile, finish, seconds=UPLOAD_SECONDS)).file
            with suppress(SmaltiError):
                await self.delete(created.file.id)
        requests = upload_requests(start, source)
        return (await self._calls.call(self._stub.UploadFile, requests, seconds=UPLOAD_SECONDS)).file

    async def compose(
        self, files: Sequence[str], *, name: str, purpose: str = PURPOSE, retention: float | None = None
    ) -> File:
        """Joins files, by their ids, to a new one, and deletes them; the other arguments are those of `upload`."""
        start = file_start(b"", name, purpose, retention)
        request = ComposeFileRequest(start=start, file_ids=files)
        return (await self._calls.call(self._stub.ComposeFile, request, seconds=UPLOAD_SECONDS)).file

    async def get(self, file_id: str) -> File:
        """Returns a file, without its content."""
        return (await self._calls.call(self._stub.GetFile, GetFileRequest(file_id=file_id))).file

    async def list(
        self,
        *,
        name: str = "",
        purpose: str = "",
        after: str = "",
        oldest_first: bool = False,
        page_size: int = 0,
    ) -> AsyncIterator[File]:
        """Yields files, newest first; requests further pages as they are needed.

        Args:
            name: only files with this name; empty for all.
            purpose: only files with this purpose; empty for all.
            after: only files that follow the one with this id; empty for all.
            oldest_first: whether the oldest come first.
            page_size: number of files to request at a time; 0 for the server's default.
        """
        request = ListFilesRequest(
            page_size=page_size, name=name, purpose=purpose, after_file_id=after, oldest_first=oldest_first
        )
        async for page in self._calls.pages(self._stub.ListFiles, request):
            for file in page.files:
                yield file

    async def delete(self, file_id: str) -> None:
        """Deletes a file."""
        await self._calls.call(self._stub.DeleteFile, DeleteFileRequest(file_id=file_id))

    async def read(self, file: File | str, *, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """Yields the content of a file, which is verified at the end if it is the whole.

        Args:
            file: the file, or its id.
            offset: the first byte that is wanted.

        Raises:
            RemoteError: the content is damaged.
        """
        content = file_content(await self.get(source_of(file)), offset, self._calls.stream_budget())
        async with aclosing(
            self._calls.resume(self._stub.DownloadFile, content, CONTENT_SECONDS)
        ) as received:
            async for piece in received:
                yield piece

    async def save(self, file: File | str, path: Path | str) -> None:
        """Downloads a file to a path, atomically."""
        await _write(self.read(file), Path(path))


class AsyncBatches:
    """The batches at a gateway: `AsyncClient.batches`."""

    def __init__(self, calls: AsyncCalls, channel: grpc.aio.Channel, files: AsyncFiles) -> None:
        """Uses the calls and the channel of a client."""
        self._calls = calls
        self._stub = BatchServiceStub(channel)
        self._files = files

    async def create(
        self,
        source: Path | File | str | None = None,
        *,
        object_key: str | None = None,
        wait: float = 0.0,
        **options: Unpack[BatchOptions],
    ) -> Batch:
        """Creates a batch and returns it as it was accepted. It runs to its end even if the client goes away.

        Args:
            source: the prompts: a path, which is uploaded, or a file at the gateway, or its id.
            object_key: the key of an object in the store, in place of `source`.
            wait: how long to wait while the gateway is full, in seconds.
            **options: see `BatchOptions`.

        Raises:
            SmaltiError: the request was refused, or the server does not answer.
        """
        if isinstance(source, Path):
            source = await self._files.upload(source)
        request = create_batch_request(source, object_key, options)
        return (await self._calls.call(self._stub.CreateBatch, request, full_seconds=wait)).batch

    async def get(self, batch_id: str) -> Batch:
        """Returns a batch as it is now."""
        return (await self._calls.call(self._stub.GetBatch, GetBatchRequest(batch_id=batch_id))).batch

    async def list(self, **filters: Unpack[BatchFilters]) -> AsyncIterator[Batch]:
        """Yields batches, newest first; requests further pages as they are needed.

        Args:
            **filters: see `BatchFilters`.
        """
        async for page in self._calls.pages(self._stub.ListBatches, list_batches_request(**filters)):
            for batch in page.batches:
                yield batch

    async def page(self, *, page_token: str = "", **filters: Unpack[BatchFilters]) -> ListBatchesResponse:
        """Returns one page of what `list` yields, with the token of the next page; it has the same arguments."""
        request = list_batches_request(**filters)
        request.page_token = page_token
        page: ListBatchesResponse = await self._calls.call(self._stub.ListBatches, request)
        return page

    def watch(self, batch_id: str, *, since_version: int | None = None) -> AsyncGenerator[Batch, None]:
        """Yields a batch as it is, and again after each change, until it has ended.

        Args:
            batch_id: the batch.
            since_version: yields only later versions; a batch that has ended is always yielded.
        """
        watch = BatchWatch(batch_id, since_version, self._calls.stream_budget())
        return self._calls.resume(self._stub.WatchBatch, watch, WATCH_SECONDS)

    async def pause(self, batch_id: str) -> Batch:
        """Begins no further shards of a batch, and returns it."""
        return (await self._calls.call(self._stub.PauseBatch, PauseBatchRequest(batch_id=batch_id))).batch

    async def resume(self, batch_id: str) -> Batch:
        """Goes on with a batch that was paused, and returns it."""
        return (await self._calls.call(self._stub.ResumeBatch, ResumeBatchRequest(batch_id=batch_id))).batch

    async def cancel(self, batch_id: str) -> Batch:
        """Cancels a batch and returns it; what is drawn stays. A batch that has ended stays as it is."""
        return (await self._calls.call(self._stub.CancelBatch, CancelBatchRequest(batch_id=batch_id))).batch

    async def delete(self, batch_id: str) -> None:
        """Deletes a batch and its files; an open batch is cancelled first."""
        await self._calls.call(self._stub.DeleteBatch, DeleteBatchRequest(batch_id=batch_id))

    async def files(self, batch_id: str) -> AsyncIterator[BatchFile]:
        """Yields the files of a batch in alphabetical order; they are complete when the batch has ended."""
        async for page in self._calls.pages(
            self._stub.ListBatchFiles, ListBatchFilesRequest(batch_id=batch_id)
        ):
            for file in page.files:
                yield file

    def read(self, batch_id: str, file: BatchFile) -> AsyncGenerator[bytes, None]:
        """Yields the content of a file of a batch, which is verified at the end.

        Raises:
            RemoteError: the content is damaged.
        """
        content = batch_file_content(batch_id, file, self._calls.stream_budget())
        return self._calls.resume(self._stub.DownloadBatchFile, content, CONTENT_SECONDS)

    async def save(self, batch_id: str, file: BatchFile, path: Path | str) -> None:
        """Downloads a file of a batch to a path, atomically."""
        await _write(self.read(batch_id, file), Path(path))


async def _write(content: AsyncGenerator[bytes, None], path: Path) -> None:
    async with aclosing(content):
        with atomic_path(path) as partial, partial.open("wb") as file:
            async for piece in content:
                file.write(piece)
