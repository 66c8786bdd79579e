"""The routes below `/v1/batches`."""

import io
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request

from smalti.batches.openai import MAX_LINE, first_request
from smalti.errors import BatchNotFoundError, InvalidInputError
from smalti.services.web.context import Context, WebContext
from smalti.services.web.jobs import is_retry, request_id_of
from smalti.services.web.openai.batches.conversion import WINDOW_SECONDS, batch_object
from smalti.services.web.openai.batches.schema import BatchList, BatchObject, BatchRequest
from smalti.services.web.openai.files import retention_of
from smalti.v1.batch_pb2 import BATCH_FORMAT_OPENAI, Batch
from smalti.v1.file_pb2 import File

PURPOSE: Final = "batch"
PAGE_SIZE: Final = 100
RETRY_SECONDS: Final = 60.0
"""Age of a batch up to which a retry may mean it."""

router = APIRouter()


@router.post("/batches")
async def create_batch(request: Request, body: BatchRequest, context: Context) -> BatchObject:
    """Creates a batch of the requests in a file. An `Idempotency-Key` makes the call safe to repeat."""
    file = await context.client.files.get(body.input_file_id)
    if file.purpose != PURPOSE:
        raise InvalidInputError("input_file_id", f"must be a file with the purpose {PURPOSE}")
    request_id = request_id_of(request.headers)
    if request_id is None and is_retry(request.headers):
        found = await _earlier(context, body)
        if found is not None:
            return batch_object(found)
    model = await _model_of(context, file, body.endpoint)
    try:
        batch = await context.client.batches.create(
            file,
            format="openai",
            name=body.endpoint,
            model=model,
            labels=body.metadata,
            skip_invalid=True,
            time_limit=WINDOW_SECONDS,
            retention=retention_of(body.output_expires_after),
            request_id=request_id,
        )
    except InvalidInputError as error:
        name, _, key = error.field.partition(".")
        if name != "labels":
            raise
        raise InvalidInputError(f"metadata.{key}" if key else "metadata", error.problem) from None
    return batch_object(batch)


@router.get("/batches")
async def list_batches(
    context: Context,
    after: Annotated[str, Query(description="Only batches that follow the one with this id.")] = "",
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> BatchList:
    """Lists batches, the newest first."""
    if after:
        _known(await context.client.batches.get(after))
    return await BatchList.of((batch_object(batch) async for batch in _batches(context, after)), limit)


@router.get("/batches/{batch_id}")
async def get_batch(batch_id: str, context: Context) -> BatchObject:
    """Returns a batch as it is now."""
    return batch_object(_known(await context.client.batches.get(batch_id)))


@router.post("/batches/{batch_id}/cancel")
async def cancel_batch(batch_id: str, context: Context) -> BatchObject:
    """Cancels a batch; what is drawn stays. One that has ended stays as it is."""
    _known(await context.client.batches.get(batch_id))
    return batch_object(await context.client.batches.cancel(batch_id))


async def _batches(context: WebContext, after: str = "") -> AsyncIterator[Batch]:
    """Yields the batches of this API, the newest first; only those that follow the one with this id, if it is given."""
    follows = not after
    async for batch in context.client.batches.list(page_size=PAGE_SIZE):
        if batch.input.format != BATCH_FORMAT_OPENAI:
            continue
        if follows:
            yield batch
        follows = follows or batch.id == after


def _known(batch: Batch) -> Batch:
    """Returns a batch of this API; raises `BatchNotFoundError` for another."""
    if batch.input.format != BATCH_FORMAT_OPENAI:
        raise BatchNotFoundError(batch.id)
    return batch


async def _earlier(context: WebContext, body: BatchRequest) -> Batch | None:
    """Returns the batch that the first try of a request has made."""
    now = datetime.now(UTC)
    async for batch in _batches(context):
        if now - batch.create_time.ToDatetime(UTC) > timedelta(seconds=RETRY_SECONDS):
            return None
        if batch.input.file_id == body.input_file_id and batch.name == body.endpoint:
            return batch
    return None


async def _model_of(context: WebContext, file: File, endpoint: str) -> str | None:
    """Returns the model of the requests of a file; None for the default one.

    Raises:
        InvalidInputError: the requests are for another endpoint.
        ModelNotFoundError: there is no such model.
    """
    head = bytearray()
    async with aclosing(context.client.files.read(file)) as pieces:
        async for piece in pieces:
            head += piece
            if b"\n" in head.lstrip() or len(head) > MAX_LINE:
                break
    try:
        found, model = first_request(io.BytesIO(bytes(head)))
    except InvalidInputError:
        return None  # The batch fails over the line, and tells which.
    if found != endpoint:
        raise InvalidInputError("endpoint", f"must be {found}, for which the requests of the file are")
    return (await context.catalogue.find(model)).reference.name
