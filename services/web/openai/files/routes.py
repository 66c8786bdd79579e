"""The routes below `/v1/files` and `/v1/uploads`."""

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from smalti.errors import StoredFileNotFoundError, WrongStateError
from smalti.services.web.context import Context, WebContext
from smalti.services.web.openai.files.content import file_content
from smalti.services.web.openai.files.parts import HIDDEN, Uploads
from smalti.services.web.openai.files.receiving import file_schema, received
from smalti.services.web.openai.files.schema import (
    CompleteRequest,
    FileDeleted,
    FileForm,
    FileList,
    FileObject,
    PartObject,
    UploadObject,
    UploadRequest,
    file_object,
    retention_of,
)
from smalti.services.web.openai.uploads import checked
from smalti.v1.file_pb2 import FILE_STATE_READY, File

DEFAULT_NAME = "file"
PAGE_SIZE = 1000

router = APIRouter()


@router.post("/files", openapi_extra=file_schema("file", purpose={"type": "string"}))
async def create_file(request: Request, context: Context) -> FileObject:
    """Uploads a file."""
    async with received(request, "file") as (fields, file):
        form = checked(FileForm, fields)
        made = await context.client.files.upload(
            file.file,
            name=file.filename or DEFAULT_NAME,
            purpose=form.purpose,
            retention=retention_of(form.expires_after),
        )
    return file_object(made)


@router.get("/files")
async def list_files(
    context: Context,
    purpose: Annotated[str, Query(max_length=64, description="Only files with this purpose.")] = "",
    after: Annotated[str, Query(description="Only files that follow the one with this id.")] = "",
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> FileList:
    """Lists files, the newest first."""
    files = context.client.files.list(
        purpose=purpose, after=after, oldest_first=order == "asc", page_size=min(limit + 1, PAGE_SIZE)
    )
    shown = (
        file_object(file)
        async for file in files
        if file.purpose not in HIDDEN and file.state == FILE_STATE_READY
    )
    return await FileList.of(shown, limit)


@router.get("/files/{file_id}")
async def get_file(file_id: str, context: Context) -> FileObject:
    """Returns a file without its content."""
    return file_object(await _visible(context, file_id))


@router.delete("/files/{file_id}")
async def delete_file(file_id: str, context: Context) -> FileDeleted:
    """Deletes a file that no batch reads."""
    await context.client.files.delete(file_id)
    return FileDeleted(id=file_id)


@router.get("/files/{file_id}/content", response_class=Response)
async def get_file_content(
    file_id: str, context: Context, asked: Annotated[str | None, Header(alias="range")] = None
) -> Response:
    """Returns the content of a file, or the part that the header `Range` names."""
    return await file_content(context, await _ready(context, file_id), asked)


@router.post("/uploads")
async def create_upload(body: UploadRequest, context: Context) -> UploadObject:
    """Begins the upload of a file in parts, which must be completed within an hour."""
    return await (await Uploads(context.client).create(body)).answer(context.client)


@router.post("/uploads/{upload_id}/parts", openapi_extra=file_schema("data"))
async def add_part(upload_id: str, request: Request, context: Context) -> PartObject:
    """Adds a part. Parts may be sent at the same time, and again if a connection breaks."""
    async with received(request, "data") as (_, file):
        return await Uploads(context.client).add(upload_id, file.file)


@router.post("/uploads/{upload_id}/complete")
async def complete_upload(upload_id: str, body: CompleteRequest, context: Context) -> UploadObject:
    """Makes a file of the parts. The call may be repeated."""
    done = await Uploads(context.client).complete(upload_id, body.part_ids, body.md5)
    return await done.answer(context.client)


@router.post("/uploads/{upload_id}/cancel")
async def cancel_upload(upload_id: str, context: Context) -> UploadObject:
    """Cancels an upload, and deletes its parts."""
    return await (await Uploads(context.client).cancel(upload_id)).answer(context.client)


async def _visible(context: WebContext, file_id: str) -> File:
    file = await context.client.files.get(file_id)
    if file.purpose in HIDDEN:
        raise StoredFileNotFoundError(file_id)
    return file


async def _ready(context: WebContext, file_id: str) -> File:
    file = await _visible(context, file_id)
    if file.state != FILE_STATE_READY:
        raise WrongStateError(f"file {file_id} has no content yet; finish its upload")
    return file
