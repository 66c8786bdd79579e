"""`BatchService`: the calls of the API for batches, on top of the gateway."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from smalti.errors import (
    BatchNotFoundError,
    InvalidInputError,
    NotSupportedError,
    StoredFileNotFoundError,
    WrongStateError,
)
from smalti.messages import SHARDS_SINCE
from smalti.queue import current_trace
from smalti.services.gateway.api.batches.conversion import batch_message
from smalti.services.gateway.api.batches.files import BatchFiles
from smalti.services.gateway.api.batches.requests import (
    InputObject,
    input_key,
    parse_batch_filter,
    parse_batch_spec,
)
from smalti.services.gateway.api.batches.watching import BatchWatchHandler
from smalti.services.gateway.api.conversion import urls_of
from smalti.services.gateway.api.requests import (
    check_id,
    check_request_id,
    content_hash,
    page_size,
    page_token,
    parse_page_token,
    required_id,
)
from smalti.services.gateway.api.watch import KEEPALIVE_SECONDS
from smalti.services.gateway.api.webhook_requests import WebhookRequests
from smalti.services.gateway.database.calls import call_database, in_thread
from smalti.services.gateway.database.tables import PageCursor
from smalti.services.gateway.gateway import Gateway
from smalti.services.gateway.identity import ANYONE, Principal, Role, current_principal, report_admin
from smalti.storage import BreakerStore
from smalti.v1 import batch_pb2
from smalti.v1.batch_pb2_grpc import BatchServiceServicer

Result = TypeVar("Result")


class BatchServicer(BatchServiceServicer):
    """Answers calls in the event loop; calls of the database and the store run in threads."""

    def __init__(self, gateway: Gateway, *, keepalive_seconds: float = KEEPALIVE_SECONDS) -> None:
        """Creates the servicer.

        Args:
            gateway: the batches.
            keepalive_seconds: maximum time without a message of WatchBatch.
        """
        self._gateway = gateway
        self._context = gateway.context
        self._settings = gateway.context.settings
        self._batches = gateway.batches.repository
        self._uploads = gateway.files
        self._store = BreakerStore(gateway.context.store)
        self._files = BatchFiles(self._store, gateway.store_threads, urls_of(gateway.context, self._store))
        self._webhooks = WebhookRequests(gateway.context)
        self._watching = BatchWatchHandler(
            gateway.watchers, partial(self._call, self._batches.get), keepalive_seconds=keepalive_seconds
        )

    async def CreateBatch(  # noqa: D102, N802
        self, request: batch_pb2.CreateBatchRequest, context: Any
    ) -> batch_pb2.CreateBatchResponse:
        principal = current_principal()
        request_id = check_request_id(request.request_id)
        request_hash = content_hash(request)
        if request_id is not None:
            found = await self._call(
                self._batches.find_request, request_id, request_hash, tenant=principal.tenant
            )
            if found is not None:
                return batch_pb2.CreateBatchResponse(batch=batch_message(found))
        self._check_deployment()
        asked = request.parameters.model
        state = self._context.catalogue.choose(asked.name, asked.revision)
        source = await self._input(request.input, principal)
        spec = replace(
            parse_batch_spec(request, source, state, self._settings),
            tenant=principal.tenant,
            request_id=request_id,
            request_hash=request_hash,
            trace=current_trace(),
        )
        if request.HasField("webhook"):
            webhook = await self._call(self._webhooks.check, request.webhook, principal.tenant)
            spec = replace(spec, webhook=webhook)
        snapshot = await self._call(self._batches.create, spec)
        return batch_pb2.CreateBatchResponse(batch=batch_message(snapshot))

    async def GetBatch(  # noqa: D102, N802
        self, request: batch_pb2.GetBatchRequest, context: Any
    ) -> batch_pb2.GetBatchResponse:
        snapshot = await self._visible(request.batch_id, "GetBatch", self._batches.get)
        return batch_pb2.GetBatchResponse(batch=batch_message(snapshot))

    async def ListBatches(  # noqa: D102, N802
        self, request: batch_pb2.ListBatchesRequest, context: Any
    ) -> batch_pb2.ListBatchesResponse:
        size = page_size(request.page_size)
        matching = replace(parse_batch_filter(request, self._settings), tenant=current_principal().scope)
        after = parse_page_token(request)
        found = await self._call(self._batches.page, matching, after=after, limit=size + 1)
        response = batch_pb2.ListBatchesResponse(batches=[batch_message(each) for each in found[:size]])
        if len(found) > size:
            row = found[size - 1].batch
            response.next_page_token = page_token(request, PageCursor(row.created, row.id))
        return response

    async def WatchBatch(  # noqa: D102, N802
        self, request: batch_pb2.WatchBatchRequest, context: Any
    ) -> AsyncIterator[batch_pb2.WatchBatchResponse]:
        batch_id = _batch_id(request.batch_id)
        if current_principal() is not ANYONE:
            # Here, since watchers share what is read later, whoever they are.
            await self._visible(batch_id, "WatchBatch", self._batches.get)
        since = request.since_version if request.HasField("since_version") else -1
        events = self._watching.watch(batch_id, since=since)
        async with aclosing(events):
            async for event in events:
                yield event

    async def PauseBatch(  # noqa: D102, N802
        self, request: batch_pb2.PauseBatchRequest, context: Any
    ) -> batch_pb2.PauseBatchResponse:
        snapshot = await self._visible(request.batch_id, "PauseBatch", self._batches.pause)
        return batch_pb2.PauseBatchResponse(batch=batch_message(snapshot))

    async def ResumeBatch(  # noqa: D102, N802
        self, request: batch_pb2.ResumeBatchRequest, context: Any
    ) -> batch_pb2.ResumeBatchResponse:
        snapshot = await self._visible(request.batch_id, "ResumeBatch", self._batches.resume)
        return batch_pb2.ResumeBatchResponse(batch=batch_message(snapshot))

    async def CancelBatch(  # noqa: D102, N802
        self, request: batch_pb2.CancelBatchRequest, context: Any
    ) -> batch_pb2.CancelBatchResponse:
        snapshot = await self._visible(request.batch_id, "CancelBatch", self._batches.cancel)
        return batch_pb2.CancelBatchResponse(batch=batch_message(snapshot))

    async def DeleteBatch(  # noqa: D102, N802
        self, request: batch_pb2.DeleteBatchRequest, context: Any
    ) -> batch_pb2.DeleteBatchResponse:
        await self._visible(request.batch_id, "DeleteBatch", self._batches.delete)
        return batch_pb2.DeleteBatchResponse()

    async def ListBatchFiles(  # noqa: D102, N802
        self, request: batch_pb2.ListBatchFilesRequest, context: Any
    ) -> batch_pb2.ListBatchFilesResponse:
        await self._visible(request.batch_id, "ListBatchFiles", self._batches.get)
        return await in_thread(self._gateway.threads, self._files.page, request)

    async def DownloadBatchFile(  # noqa: D102, N802
        self, request: batch_pb2.DownloadBatchFileRequest, context: Any
    ) -> AsyncIterator[batch_pb2.DownloadBatchFileResponse]:
        await self._visible(request.batch_id, "DownloadBatchFile", self._batches.get)
        threads = self._gateway.store_threads
        read = await in_thread(threads, self._files.read, request.batch_id, request.name, request.offset)
        while data := await in_thread(threads, read):
            yield batch_pb2.DownloadBatchFileResponse(data=data)

    def _check_deployment(self) -> None:
        """Raises `WrongStateError` or `NotSupportedError` if batches cannot be drawn here."""
        if self._context.catalogue.write < SHARDS_SINCE:
            raise WrongStateError(
                f"batches need messages of version {SHARDS_SINCE}; let the operator set SMALTI_MESSAGES_WRITE="
                f"{SHARDS_SINCE} once all services are of this version"
            )
        if self._context.policy.asks_pictures:
            raise NotSupportedError(
                "the operator's policy must see every picture, which batches do not support; create jobs instead"
            )

    async def _input(self, asked: batch_pb2.BatchInput, principal: Principal) -> InputObject:
        """Returns the object of an input; raises `StoredFileNotFoundError` if there is none."""
        match asked.WhichOneof("source"):
            case "object_key":
                key = input_key(asked, principal.tenant)
                await self._call(self._batches.check_input, key, principal.tenant)
                info = await in_thread(self._gateway.store_threads, self._store.stat, key)
                if info is None:
                    raise StoredFileNotFoundError(key, f"there is no object {key} in the store")
                return InputObject(key=key, name=key, sha256=info.sha256)
            case "file_id":
                file = await self._call(
                    self._uploads.get_ready,
                    check_id(asked.file_id, StoredFileNotFoundError),
                    tenant=principal.scope,
                )
                return InputObject(key=file.key or "", name=file.name, sha256=file.sha256, file_id=file.id)
            case _:
                raise InvalidInputError("input.source", "must be set; give file_id or object_key")

    async def _visible(self, batch_id: str, method: str, call: Callable[..., Result]) -> Result:
        """Calls a function of a batch that the caller may see; raises `BatchNotFoundError` for any other."""
        principal = current_principal()
        batch_id = _batch_id(batch_id)
        if Role.ADMIN in principal.roles and principal is not ANYONE:
            snapshot = await self._call(self._batches.get, batch_id, tenant=principal.scope)
            report_admin(principal, method, snapshot.batch.tenant, batch=batch_id)
        return await self._call(call, batch_id, tenant=principal.scope)

    async def _call(self, function: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        """Runs a function of the database in a thread; raises `DatabaseUnavailableError`."""
        seconds = self._settings.database_timeout
        return await call_database(self._gateway.threads, seconds, function, *arguments, **named)


def _batch_id(batch_id: str) -> str:
    return required_id("batch_id", batch_id, BatchNotFoundError)
