"""`FileService`: the calls of the API for files."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import Any, Final, TypeVar

from smalti.errors import (
    DamagedObjectError,
    InvalidInputError,
    MissingObjectError,
    OverloadedError,
    RequestExpiredError,
    StoredFileNotFoundError,
    UnavailableError,
)
from smalti.rpc.errors import within
from smalti.services.gateway.api.conversion import timestamp
from smalti.services.gateway.api.requests import (
    page_size,
    page_token,
    parse_page_token,
    required_id,
    seconds_of,
)
from smalti.services.gateway.database.calls import call_database, in_thread
from smalti.services.gateway.database.tables import (
    MAX_PURPOSE_LENGTH,
    FileState,
    PageCursor,
    StoredFile,
)
from smalti.services.gateway.files import (
    FileContents,
    FileFilter,
    Incoming,
    NewFile,
)
from smalti.services.gateway.gateway import Gateway
from smalti.services.gateway.identity import current_principal, report_admin
from smalti.storage import BreakerStore
from smalti.v1 import file_pb2
from smalti.v1.file_pb2_grpc import FileServiceServicer

log = logging.getLogger(__name__)

PIECE_BYTES: Final = 2**20
"""Bytes of a message of UploadFile, at most."""
MAX_UPLOADS: Final = 8
"""Contents that arrive, or are joined, at the same time; each takes room on the disk."""
IDLE_SECONDS: Final = 60.0
"""Time within which the next message of UploadFile must arrive."""
MIN_BYTES_PER_SECOND: Final = 2**14
"""Rate at which content must arrive, after the first `IDLE_SECONDS`: a slow client holds a place of all clients."""
URL_SECONDS: Final = 3600.0
"""Time for which an upload URL is valid."""
MAX_PARTS: Final = 1000
_COMPOSED: Final = uuid.UUID("5c1b8d0e-52a4-4f0b-9b57-2f6f3f4f6b1d")
"""The namespace of the ids of files that are made of others."""
MAX_NAME_LENGTH: Final = 255
HOUR, DAY = 3600.0, 24 * 3600.0
MIN_RETENTION, DEFAULT_RETENTION, MAX_RETENTION = HOUR, 30 * DAY, 365 * DAY
_STATES: Final = {
    FileState.UPLOADING: file_pb2.FILE_STATE_UPLOADING,
    FileState.READY: file_pb2.FILE_STATE_READY,
}

Result = TypeVar("Result")


class FileServicer(FileServiceServicer):
    """Answers calls in the event loop; calls of the database and the store run in threads."""

    def __init__(self, gateway: Gateway) -> None:
        """Takes the gateway whose files it serves."""
        self._gateway = gateway
        self._settings = gateway.context.settings
        self._files = gateway.files
        self._contents = FileContents(BreakerStore(gateway.context.store))
        self._uploads = 0

    async def CreateFile(  # noqa: D102, N802
        self, request: file_pb2.CreateFileRequest, context: Any
    ) -> file_pb2.CreateFileResponse:
        new = _new_file(request.start)
        row, _ = await self._call(self._files.reserve, new, url_seconds=URL_SECONDS)
        async with self._given_up_on_failure(row):
            url = await self._store(self._contents.upload_url, row.id, URL_SECONDS)
        if not url:
            await self._call(self._files.give_up, row.id)  # UploadFile makes another.
        return file_pb2.CreateFileResponse(
            file=file_message(row),
            upload_url=url,
            upload_expire_time=timestamp(row.url_until) if url else None,
        )

    async def FinishFile(  # noqa: D102, N802
        self, request: file_pb2.FinishFileRequest, context: Any
    ) -> file_pb2.FinishFileResponse:
        row = await self._visible(request.file_id, "FinishFile")
        if row.state is not FileState.READY:
            with self._upload(), self._incoming() as incoming:
                await self._store(self._contents.collect_upload, row.id, incoming)
                row = await self._finish(row, incoming)
            with suppress(UnavailableError):  # Otherwise it is deleted with the file.
                await self._store(self._contents.delete_upload, row.id)
        return file_pb2.FinishFileResponse(file=file_message(row))

    async def UploadFile(  # noqa: D102, N802
        self, request_iterator: AsyncIterator[file_pb2.UploadFileRequest], context: Any
    ) -> file_pb2.UploadFileResponse:
        requests = aiter(request_iterator)
        first = await _next(requests)
        if first is None or first.WhichOneof("part") != "start":
            raise InvalidInputError("start", "must be in the first message")
        new = _new_file(first.start)
        with self._upload():
            row, room = await self._call(self._files.reserve, new)
            async with self._given_up_on_failure(row):
                with self._incoming() as incoming:
                    begun = time.monotonic()
                    while (message := await _next(requests)) is not None:
                        _check_rate(incoming.size, time.monotonic() - begun)
                        await self._store(incoming.write, _data(message))
                        if incoming.size > room:
                            await self._call(self._files.check_room, new.tenant, incoming.size)
                    row = await self._finish(row, incoming)
        return file_pb2.UploadFileResponse(file=file_message(row))

    async def ComposeFile(  # noqa: D102, N802
        self, request: file_pb2.ComposeFileRequest, context: Any
    ) -> file_pb2.ComposeFileResponse:
        new, ids = _new_file(request.start), list(request.file_ids)
        if not 1 <= len(ids) <= MAX_PARTS or len(set(ids)) != len(ids):
            raise InvalidInputError("file_ids", f"must have 1 to {MAX_PARTS} ids, each once, got {len(ids)}")
        new = replace(new, id=_composed_id(new.tenant, ids))
        with suppress(StoredFileNotFoundError):
            joined = await self._call(self._files.get, new.id, tenant=new.tenant)
            if joined.state is FileState.READY:  # By a call whose answer was lost.
                return file_pb2.ComposeFileResponse(file=file_message(joined))
        parts = [await self._call(self._files.get_ready, _file_id(each), tenant=new.tenant) for each in ids]
        if (total := sum(part.size for part in parts)) > self._settings.file_bytes:
            raise InvalidInputError(
                "file_ids", f"must have at most {self._settings.file_bytes} bytes together, got {total}"
            )
        with self._upload():
            row = await self._call(self._files.add, new)
            if (
                row.state is FileState.DELETED
            ):  # An earlier call has failed, and its objects are yet to be deleted.
                row = await self._call(self._files.add, replace(new, id=""))
            async with self._given_up_on_failure(row):
                with self._incoming() as incoming, _readable():
                    await self._store(self._contents.collect, parts, incoming)
                    row = await self._finish(row, incoming, parts=ids)
        return file_pb2.ComposeFileResponse(file=file_message(row))

    async def GetFile(self, request: file_pb2.GetFileRequest, context: Any) -> file_pb2.GetFileResponse:  # noqa: D102, N802
        return file_pb2.GetFileResponse(file=file_message(await self._visible(request.file_id, "GetFile")))

    async def ListFiles(self, request: file_pb2.ListFilesRequest, context: Any) -> file_pb2.ListFilesResponse:  # noqa: D102, N802
        size, after = page_size(request.page_size), await self._after(request)
        matching = FileFilter(
            name=_text("name", request.name, 0, MAX_NAME_LENGTH),
            purpose=_text("purpose", request.purpose, 0, MAX_PURPOSE_LENGTH),
            tenant=current_principal().scope,
        )
        # One file more than the page holds shows whether there is another page.
        found = await self._call(
            self._files.page,
            matching,
            after=after,
            limit=size + 1,
            oldest_first=request.oldest_first,
        )
        response = file_pb2.ListFilesResponse(files=[file_message(row) for row in found[:size]])
        if len(found) > size:
            end = found[size - 1]
            response.next_page_token = page_token(request, PageCursor(end.created, end.id))
        return response

    async def DeleteFile(  # noqa: D102, N802
        self, request: file_pb2.DeleteFileRequest, context: Any
    ) -> file_pb2.DeleteFileResponse:
        principal = current_principal()
        row = await self._call(self._files.delete, _file_id(request.file_id), tenant=principal.scope)
        report_admin(principal, "DeleteFile", row.tenant, file=row.id)
        self._gateway.files_due.set()
        return file_pb2.DeleteFileResponse()

    async def DownloadFile(  # noqa: D102, N802
        self, request: file_pb2.DownloadFileRequest, context: Any
    ) -> AsyncIterator[file_pb2.DownloadFileResponse]:
        principal = current_principal()
        row = await self._call(self._files.get_ready, _file_id(request.file_id), tenant=principal.scope)
        report_admin(principal, "DownloadFile", row.tenant, file=row.id)
        if not 0 <= request.offset <= row.size:
            raise InvalidInputError("offset", f"must be between 0 and {row.size}, got {request.offset}")
        with _readable():
            pieces = self._contents.pieces(row, request.offset)
            while data := await self._store(next, pieces, b""):
                yield file_pb2.DownloadFileResponse(data=data)

    async def _after(self, request: file_pb2.ListFilesRequest) -> PageCursor | None:
        """Returns the file after which a page begins."""
        if request.after_file_id and request.page_token:
            raise InvalidInputError("after_file_id", "must not be set together with page_token")
        if request.after_file_id:
            row = await self._visible(request.after_file_id, "ListFiles")
            return PageCursor(row.created, row.id)
        return parse_page_token(request)

    async def _finish(self, row: StoredFile, incoming: Incoming, *, parts: Any = ()) -> StoredFile:
        """Puts the content of a file into the store, and makes the file READY."""
        ref = await self._store(self._contents.put, row.id, incoming)
        return await self._call(self._files.finish, row.id, ref, incoming.size, parts=parts)

    async def _visible(self, file_id: str, method: str) -> StoredFile:
        """Returns a file that the caller may see; raises `StoredFileNotFoundError` for any other."""
        principal = current_principal()
        row = await self._call(self._files.get, _file_id(file_id), tenant=principal.scope)
        report_admin(principal, method, row.tenant, file=row.id)
        return row

    def _incoming(self) -> Incoming:
        return Incoming(self._settings.file_bytes, "divide it into several files")

    @contextmanager
    def _upload(self) -> Iterator[None]:
        """Counts an upload while the block runs; raises `OverloadedError` if there are too many."""
        if self._uploads >= MAX_UPLOADS:
            raise OverloadedError(f"{self._uploads} files already arrive; try again", 5.0)
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1

    @asynccontextmanager
    async def _given_up_on_failure(self, row: StoredFile) -> AsyncIterator[None]:
        """Gives a reserved file up if the block fails, so that nothing of it is stored."""
        try:
            yield
        except BaseException:
            # If the database is away too, the sweeper gives it up.
            with suppress(UnavailableError):
                await self._call(self._files.give_up, row.id)
            raise

    async def _call(self, function: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        """Runs a function of the database in a thread; raises `DatabaseUnavailableError`."""
        seconds = self._settings.database_timeout
        return await call_database(self._gateway.threads, seconds, function, *arguments, **named)

    async def _store(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Runs a function of the store, or of the disk, in a thread."""
        return await in_thread(self._gateway.store_threads, function, *arguments)


def file_message(row: StoredFile) -> file_pb2.File:
    """Returns a file as a message."""
    is_ready = row.state is FileState.READY
    return file_pb2.File(
        id=row.id,
        name=row.name,
        purpose=row.purpose,
        state=_STATES.get(row.state, file_pb2.FILE_STATE_UNSPECIFIED),
        size_bytes=row.size if is_ready else 0,
        sha256=(row.sha256 or "") if is_ready else "",
        create_time=timestamp(row.created),
        delete_time=timestamp(row.delete_at),
    )


def _new_file(start: file_pb2.FileStart) -> NewFile:
    with within("start"):
        return NewFile(
            tenant=current_principal().tenant,
            name=_text("name", start.name, 1, MAX_NAME_LENGTH),
            purpose=_text("purpose", start.purpose, 0, MAX_PURPOSE_LENGTH),
            retention=seconds_of(start, "retention", MIN_RETENTION, MAX_RETENTION) or DEFAULT_RETENTION,
        )


def _composed_id(tenant: str, file_ids: Sequence[str]) -> str:
    """Returns the id of the file that others are joined to. They are gone then, so it is made once."""
    return str(uuid.uuid5(_COMPOSED, "\0".join((tenant, *file_ids))))


def _text(field: str, text: str, minimum: int, maximum: int) -> str:
    if not minimum <= len(text) <= maximum:
        raise InvalidInputError(field, f"must have {minimum} to {maximum} characters, got {len(text)}")
    if any(character < " " or character == "\x7f" for character in text):
        raise InvalidInputError(field, "must have no control characters")
    return text


def _data(message: file_pb2.UploadFileRequest) -> bytes:
    if message.WhichOneof("part") != "data":
        raise InvalidInputError("data", "must be in all messages but the first")
    if len(message.data) > PIECE_BYTES:
        raise InvalidInputError("data", f"must have at most {PIECE_BYTES} bytes, got {len(message.data)}")
    return message.data


async def _next(requests: AsyncIterator[file_pb2.UploadFileRequest]) -> file_pb2.UploadFileRequest | None:
    """Returns the next message of an upload; None at its end. Raises `RequestExpiredError`."""
    limit = asyncio.timeout(IDLE_SECONDS)
    try:
        async with limit:
            return await anext(requests, None)
    except TimeoutError:
        if not limit.expired():
            raise
        raise RequestExpiredError(f"nothing has arrived for {IDLE_SECONDS:g} s") from None


def _check_rate(size: int, seconds: float) -> None:
    """Raises `RequestExpiredError` if so few bytes have arrived in a time that the client holds others up."""
    if seconds > IDLE_SECONDS + size / MIN_BYTES_PER_SECOND:
        raise RequestExpiredError(f"only {size} bytes have arrived in {seconds:.0f} s; send larger messages")


@contextmanager
def _readable() -> Iterator[None]:
    """Raises `StoredFileNotFoundError` in place of what the store says about content that is gone, or damaged."""
    try:
        yield
    except MissingObjectError as error:
        raise StoredFileNotFoundError(_id_in(error.key)) from None
    except DamagedObjectError as error:
        log.warning("a damaged file is not served: %s", error)
        raise StoredFileNotFoundError(_id_in(error.key), f"file {_id_in(error.key)} is damaged") from None


def _id_in(key: str) -> str:
    return key.split("/")[1] if "/" in key else key


def _file_id(file_id: str) -> str:
    return required_id("file_id", file_id, StoredFileNotFoundError)
