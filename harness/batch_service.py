"""Scripted batches and files in memory for tests of clients: fixed states, and streams that break on demand."""

import hashlib
from collections.abc import AsyncIterator
from typing import Any, Final

from harness.scripted import Faults, page
from smalti.errors import BatchNotFoundError, NotSupportedError, StoredFileNotFoundError, UnavailableError
from smalti.rpc.errors import status_of
from smalti.v1 import batch_pb2, file_pb2
from smalti.v1.batch_pb2_grpc import BatchServiceServicer
from smalti.v1.file_pb2_grpc import FileServiceServicer

PIECE_BYTES: Final = 100
"""The size in bytes of a piece of a file."""
PROMPTS: Final = 3
FILES: Final = {
    "00000.tar": bytes(range(256)) * 2,
    "_SUCCESS": b"",
    "manifest/00000.parquet": b"PAR1" * 60,
    "summary.json": b'{"state": "complete"}\n',
}
"""The files of every batch."""

Context = Any


class ScriptedBatches(Faults, BatchServiceServicer, FileServiceServicer):
    """Batches go through PLANNING and RUNNING, and succeed at once; one with the name "fail" fails."""

    def __init__(self) -> None:
        """Creates services without batches, files and faults."""
        super().__init__()
        self.batches: dict[str, list[batch_pb2.Batch]] = {}
        """The versions of each batch."""
        self.files: dict[str, tuple[file_pb2.File, bytes]] = {}
        self.upload_url = ""
        """What CreateFile returns."""

    async def CreateBatch(  # noqa: N802
        self, request: batch_pb2.CreateBatchRequest, context: Context
    ) -> batch_pb2.CreateBatchResponse:
        """Creates a batch."""
        self.calls["CreateBatch"].append(request)
        same = [each[0] for each in self.batches.values() if each[0].request_id == request.request_id]
        if not same:
            if request.input.file_id and request.input.file_id not in self.files:
                raise StoredFileNotFoundError(request.input.file_id)
            same = [self._add(request)]
        self._lose("CreateBatch")
        return batch_pb2.CreateBatchResponse(batch=same[0])

    async def GetBatch(  # noqa: N802
        self, request: batch_pb2.GetBatchRequest, context: Context
    ) -> batch_pb2.GetBatchResponse:
        """Returns the last version of a batch."""
        self.calls["GetBatch"].append(request)
        return batch_pb2.GetBatchResponse(batch=self._versions_of(request.batch_id)[-1])

    async def ListBatches(  # noqa: N802
        self, request: batch_pb2.ListBatchesRequest, context: Context
    ) -> batch_pb2.ListBatchesResponse:
        """Returns a page of two batches."""
        self.calls["ListBatches"].append(request)
        batches, token = page([each[-1] for each in reversed(self.batches.values())], request.page_token, 2)
        return batch_pb2.ListBatchesResponse(batches=batches, next_page_token=token)

    async def WatchBatch(  # noqa: N802
        self, request: batch_pb2.WatchBatchRequest, context: Context
    ) -> AsyncIterator[batch_pb2.WatchBatchResponse]:
        """Sends the versions of a batch, with heartbeats in between."""
        self.calls["WatchBatch"].append(request)
        versions = self._versions_of(request.batch_id)
        since = request.since_version if request.HasField("since_version") else 0
        breaks = self._breaks("WatchBatch")
        following = [each for each in versions if each.version > since] or versions[-1:]
        for sent, version in enumerate(following, 1):
            yield batch_pb2.WatchBatchResponse()
            yield batch_pb2.WatchBatchResponse(batch=version)
            if sent == breaks:
                raise UnavailableError("the connection broke")

    async def PauseBatch(  # noqa: N802
        self, request: batch_pb2.PauseBatchRequest, context: Context
    ) -> batch_pb2.PauseBatchResponse:
        """Leaves a version alone that is PAUSED."""
        state = batch_pb2.BATCH_STATE_PAUSED
        return batch_pb2.PauseBatchResponse(batch=self._change(request.batch_id, state))

    async def ResumeBatch(  # noqa: N802
        self, request: batch_pb2.ResumeBatchRequest, context: Context
    ) -> batch_pb2.ResumeBatchResponse:
        """Leaves a version alone that is RUNNING."""
        state = batch_pb2.BATCH_STATE_RUNNING
        return batch_pb2.ResumeBatchResponse(batch=self._change(request.batch_id, state))

    async def CancelBatch(  # noqa: N802
        self, request: batch_pb2.CancelBatchRequest, context: Context
    ) -> batch_pb2.CancelBatchResponse:
        """Leaves a version alone that is CANCELLED."""
        state = batch_pb2.BATCH_STATE_CANCELLED
        return batch_pb2.CancelBatchResponse(batch=self._change(request.batch_id, state))

    async def DeleteBatch(  # noqa: N802
        self, request: batch_pb2.DeleteBatchRequest, context: Context
    ) -> batch_pb2.DeleteBatchResponse:
        """Deletes a batch."""
        self._versions_of(request.batch_id)
        del self.batches[request.batch_id]
        return batch_pb2.DeleteBatchResponse()

    async def ListBatchFiles(  # noqa: N802
        self, request: batch_pb2.ListBatchFilesRequest, context: Context
    ) -> batch_pb2.ListBatchFilesResponse:
        """Returns a page of two files."""
        self._versions_of(request.batch_id)
        names, token = page(sorted(FILES), request.page_token, 2)
        files = [
            batch_pb2.BatchFile(
                name=name, size_bytes=len(FILES[name]), sha256=hashlib.sha256(FILES[name]).hexdigest()
            )
            for name in names
        ]
        return batch_pb2.ListBatchFilesResponse(files=files, next_page_token=token)

    async def DownloadBatchFile(  # noqa: N802
        self, request: batch_pb2.DownloadBatchFileRequest, context: Context
    ) -> AsyncIterator[batch_pb2.DownloadBatchFileResponse]:
        """Sends a file in pieces."""
        self.calls["DownloadBatchFile"].append(request)
        self._versions_of(request.batch_id)
        async for piece in self._pieces("DownloadBatchFile", FILES[request.name], request.offset):
            yield batch_pb2.DownloadBatchFileResponse(data=piece)

    async def CreateFile(  # noqa: N802
        self, request: file_pb2.CreateFileRequest, context: Context
    ) -> file_pb2.CreateFileResponse:
        """Reserves a file."""
        self.calls["CreateFile"].append(request)
        file = self._add_file(request.start, b"", file_pb2.FILE_STATE_UPLOADING)
        return file_pb2.CreateFileResponse(file=file, upload_url=self.upload_url)

    async def FinishFile(  # noqa: N802
        self, request: file_pb2.FinishFileRequest, context: Context
    ) -> file_pb2.FinishFileResponse:
        """Makes a file READY."""
        self.calls["FinishFile"].append(request)
        file, _ = self._file_of(request.file_id)
        file.state = file_pb2.FILE_STATE_READY
        return file_pb2.FinishFileResponse(file=file)

    async def UploadFile(  # noqa: N802
        self, requests: AsyncIterator[file_pb2.UploadFileRequest], context: Context
    ) -> file_pb2.UploadFileResponse:
        """Takes a file."""
        received = [request async for request in requests]
        self.calls["UploadFile"].append(received[0])
        self._lose("UploadFile")
        content = b"".join(request.data for request in received[1:])
        return file_pb2.UploadFileResponse(
            file=self._add_file(received[0].start, content, file_pb2.FILE_STATE_READY)
        )

    async def ComposeFile(  # noqa: N802
        self, request: file_pb2.ComposeFileRequest, context: Context
    ) -> file_pb2.ComposeFileResponse:
        """Joins files."""
        content = b"".join(self._file_of(each)[1] for each in request.file_ids)
        return file_pb2.ComposeFileResponse(
            file=self._add_file(request.start, content, file_pb2.FILE_STATE_READY)
        )

    async def GetFile(  # noqa: N802
        self, request: file_pb2.GetFileRequest, context: Context
    ) -> file_pb2.GetFileResponse:
        """Returns a file."""
        return file_pb2.GetFileResponse(file=self._file_of(request.file_id)[0])

    async def ListFiles(  # noqa: N802
        self, request: file_pb2.ListFilesRequest, context: Context
    ) -> file_pb2.ListFilesResponse:
        """Returns a page of one file."""
        self.calls["ListFiles"].append(request)
        files, token = page([file for file, _ in self.files.values()], request.page_token, 1)
        return file_pb2.ListFilesResponse(files=files, next_page_token=token)

    async def DeleteFile(  # noqa: N802
        self, request: file_pb2.DeleteFileRequest, context: Context
    ) -> file_pb2.DeleteFileResponse:
        """Deletes a file."""
        self._file_of(request.file_id)
        del self.files[request.file_id]
        return file_pb2.DeleteFileResponse()

    async def DownloadFile(  # noqa: N802
        self, request: file_pb2.DownloadFileRequest, context: Context
    ) -> AsyncIterator[file_pb2.DownloadFileResponse]:
        """Sends a file in pieces."""
        self.calls["DownloadFile"].append(request)
        content = self._file_of(request.file_id)[1]
        async for piece in self._pieces("DownloadFile", content, request.offset):
            yield file_pb2.DownloadFileResponse(data=piece)

    async def _pieces(self, method: str, content: bytes, offset: int) -> AsyncIterator[bytes]:
        breaks = self._breaks(method)
        if self.damaged:
            self.damaged -= 1
            content = content[:-1] + b"x"
        for sent, start in enumerate(range(offset, len(content), PIECE_BYTES), 1):
            yield content[start : start + PIECE_BYTES]
            if sent == breaks:
                raise UnavailableError("the connection broke")

    def _add(self, request: batch_pb2.CreateBatchRequest) -> batch_pb2.Batch:
        """Adds the versions of a batch: planning, running, ended."""
        base = batch_pb2.Batch(
            id=f"batch-{len(self.batches)}", request_id=request.request_id, name=request.name,
            input=request.input, parameters=request.parameters, picture_format=request.picture_format,
            labels=request.labels, validate_only=request.validate_only,
        )  # fmt: skip
        versions = []
        fails = request.name == "fail"
        last = batch_pb2.BATCH_STATE_FAILED if fails else batch_pb2.BATCH_STATE_SUCCEEDED
        for number, state in enumerate(
            (batch_pb2.BATCH_STATE_PLANNING, batch_pb2.BATCH_STATE_RUNNING, last), 1
        ):
            version = batch_pb2.Batch()
            version.CopyFrom(base)
            version.version, version.state = number, state
            if number > 1:
                version.progress.prompts = PROMPTS
                version.progress.prompts_drawn = PROMPTS if number == 3 else 1
                version.estimate.candidates, version.estimate.pictures = 4 * PROMPTS, PROMPTS
            versions.append(version)
        if fails:
            versions[-1].error.CopyFrom(status_of(NotSupportedError("it cannot be drawn")))
        self.batches[base.id] = versions
        return versions[0]

    def _change(self, batch_id: str, state: Any) -> batch_pb2.Batch:
        versions = self._versions_of(batch_id)
        changed = batch_pb2.Batch()
        changed.CopyFrom(versions[-1])
        changed.version, changed.state = changed.version + 1, state
        versions[:] = [changed]
        return changed

    def _add_file(self, start: file_pb2.FileStart, content: bytes, state: Any) -> file_pb2.File:
        file = file_pb2.File(
            id=f"file-{len(self.files)}", name=start.name, purpose=start.purpose, state=state,
            size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest(),
        )  # fmt: skip
        self.files[file.id] = file, content
        return file

    def _versions_of(self, batch_id: str) -> list[batch_pb2.Batch]:
        if batch_id not in self.batches:
            raise BatchNotFoundError(batch_id)
        return self.batches[batch_id]

    def _file_of(self, file_id: str) -> tuple[file_pb2.File, bytes]:
        if file_id not in self.files:
            raise StoredFileNotFoundError(file_id)
        return self.files[file_id]
