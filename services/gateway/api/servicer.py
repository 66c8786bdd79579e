"""`ImageService`: the contract's calls, on top of the gateway."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from smalti.errors import (
    DamagedObjectError,
    InvalidInputError,
    JobNotFoundError,
    JobNotSucceededError,
    MissingObjectError,
    PictureNotFoundError,
)
from smalti.queue import current_trace
from smalti.rpc.conversion import check_asked_model
from smalti.rpc.errors import within
from smalti.services.gateway.api.catalogue import describe, without_words
from smalti.services.gateway.api.conversion import job_message, picture_message
from smalti.services.gateway.api.initial_image import InitialImages
from smalti.services.gateway.api.previews import Previews
from smalti.services.gateway.api.requests import (
    check_request_id,
    check_view,
    conditions_of,
    content_hash,
    order_of,
    page_size,
    page_token,
    position_of,
)
from smalti.services.gateway.api.watching import SIGN_OF_LIFE_SECONDS, Watching
from smalti.services.gateway.database.clock import to_microseconds
from smalti.services.gateway.database.tables import Picture, State
from smalti.services.gateway.gateway import Gateway
from smalti.services.gateway.jobs.repository import Position, Snapshot
from smalti.v1 import image_pb2, job_pb2
from smalti.v1.image_pb2_grpc import ImageServiceServicer

if TYPE_CHECKING:
    from smalti.v1.decoder_pb2_grpc import DecoderServiceAsyncStub

PIECE_BYTES: Final = 2**20
MAX_PAGE_BYTES: Final = 3 * 2**20
"""Of the jobs on a page; with the last of them a message stays below 4 MiB."""
ENDLESS: Final = ("/smalti.v1.ImageService/WatchJob",)

Result = TypeVar("Result")


class ImageServicer(ImageServiceServicer):
    """Answers calls; every one in the event loop, with the database and the store in threads."""

    def __init__(
        self,
        gateway: Gateway,
        decoder: "DecoderServiceAsyncStub | None" = None,
        *,
        silence: float = SIGN_OF_LIFE_SECONDS,
    ) -> None:
        """Takes what it answers from.

        Args:
            gateway: the jobs.
            decoder: makes previews, and tokens of initial images; None where there is none.
            silence: the longest time without a message of WatchJob, in seconds.

        Raises:
            ModelError: a file of the model cannot be used.
        """
        self._gateway = gateway
        self._jobs = gateway.jobs
        self._model = describe(gateway.spec, gateway.settings)
        self._images = InitialImages(gateway, decoder)
        self._watching = Watching(
            gateway.hub,
            partial(self._call, self._get),
            previews=Previews(gateway.hub.canvases, gateway.spec, decoder) if decoder else None,
            preview_seconds=gateway.settings.previews,
            silence=silence,
        )

    async def CreateImages(  # noqa: N802
        self, request: image_pb2.CreateImagesRequest, context: Any
    ) -> image_pb2.CreateImagesResponse:
        """See the contract."""
        request_id = check_request_id(request.request_id)
        request_hash = content_hash(request)
        if request_id is not None:
            # Before anything else: the first call's job is the answer, whatever has changed since.
            found = await self._call(self._jobs.find_request, request_id, request_hash)
            if found is not None:
                return image_pb2.CreateImagesResponse(job=await self._message(found, full=True))
        order = order_of(request, self._gateway.spec, self._gateway.settings)
        order = replace(order, request_id=request_id, request_hash=request_hash, trace=current_trace())
        if order.keep_rows:
            await self._call(self._jobs.check_room)
            with within("parameters.initial_image"):
                given = await self._images.tokens(request.parameters.initial_image)
            order = replace(order, given=given)
        with within("parameters"):
            snapshot = await self._call(self._jobs.create, order)
        return image_pb2.CreateImagesResponse(job=await self._message(snapshot, full=True))

    async def GetJob(self, request: image_pb2.GetJobRequest, context: Any) -> image_pb2.GetJobResponse:  # noqa: N802
        """See the contract."""
        check_view(request.view)
        full = request.view != image_pb2.JOB_VIEW_BASIC
        _, message = await self._call(self._get, _job_id(request.job_id), full=full)
        return image_pb2.GetJobResponse(job=message)

    async def ListJobs(self, request: image_pb2.ListJobsRequest, context: Any) -> image_pb2.ListJobsResponse:  # noqa: N802
        """See the contract."""
        check_view(request.view)
        size = page_size(request.page_size)
        conditions, behind = conditions_of(request), position_of(request)
        full = request.view == image_pb2.JOB_VIEW_FULL
        # One more than the page holds tells whether there is another page.
        found = await self._call(self._jobs.page, conditions, behind=behind, limit=size + 1, full=full)
        response = image_pb2.ListJobsResponse()
        total = 0
        for snapshot in found[:size]:
            message = await self._message(snapshot, full=full)
            total += message.ByteSize()
            if response.jobs and total > MAX_PAGE_BYTES:
                break
            response.jobs.append(message)
        if len(response.jobs) < len(found):
            last = found[len(response.jobs) - 1].job
            response.next_page_token = page_token(request, Position(last.created, last.id))
        return response

    async def CancelJob(  # noqa: N802
        self, request: image_pb2.CancelJobRequest, context: Any
    ) -> image_pb2.CancelJobResponse:
        """See the contract."""
        snapshot = await self._call(self._gateway.cancel, _job_id(request.job_id))
        return image_pb2.CancelJobResponse(job=await self._message(snapshot, full=True))

    async def WatchJob(  # noqa: N802
        self, request: image_pb2.WatchJobRequest, context: Any
    ) -> AsyncIterator[image_pb2.WatchJobResponse]:
        """See the contract."""
        events = self._watching.watch(
            _job_id(request.job_id),
            since=request.since_version if request.HasField("since_version") else -1,
            rows=request.include_rows,
            previews=request.include_previews,
        )
        async with aclosing(events):
            async for event in events:
                yield event

    async def DownloadImages(  # noqa: N802
        self, request: image_pb2.DownloadImagesRequest, context: Any
    ) -> AsyncIterator[image_pb2.DownloadImagesResponse]:
        """See the contract."""
        snapshot = await self._call(self._jobs.get, _job_id(request.job_id))
        for picture in _wanted(snapshot, set(request.candidates)):
            content = await self._call(self._read, picture)
            message = await self._call(picture_message, picture, self._address)
            for start in range(0, len(content), PIECE_BYTES):
                yield image_pb2.DownloadImagesResponse(
                    picture=message if start == 0 else None, data=content[start : start + PIECE_BYTES]
                )

    async def ListModels(  # noqa: N802
        self, request: image_pb2.ListModelsRequest, context: Any
    ) -> image_pb2.ListModelsResponse:
        """See the contract."""
        page_size(request.page_size)
        if request.page_token:
            raise InvalidInputError("page_token", "is damaged; begin with the first page")
        return image_pb2.ListModelsResponse(models=[without_words(self._model)])

    async def GetModel(self, request: image_pb2.GetModelRequest, context: Any) -> image_pb2.GetModelResponse:  # noqa: N802
        """See the contract."""
        check_asked_model(request.model, self._model.reference)
        return image_pb2.GetModelResponse(model=self._model)

    async def _call(self, function: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        """Calls a function that waits for the database or the store, in a thread, which speaks for this call."""
        loop = asyncio.get_running_loop()
        call = partial(copy_context().run, function, *arguments, **named)
        return await loop.run_in_executor(self._gateway.threads, call)

    async def _message(self, snapshot: Snapshot, *, full: bool) -> job_pb2.Job:
        if snapshot.pictures:
            # Addresses are signed.
            return await self._call(job_message, snapshot, self._address, full=full)
        return job_message(snapshot, self._address, full=full)

    def _get(self, job_id: str, *, full: bool = True) -> tuple[Snapshot, job_pb2.Job]:
        snapshot = self._jobs.get(job_id, full=full)
        return snapshot, job_message(snapshot, self._address, full=full)

    def _address(self, key: str) -> tuple[str, int] | None:
        seconds = self._gateway.settings.url_lifetime
        until = to_microseconds(self._gateway.clock() + seconds)
        url = self._gateway.store.presigned_url(key, seconds=seconds)
        return (url, until) if url.startswith(("http://", "https://")) else None

    def _read(self, picture: Picture) -> bytes:
        name = f"{picture.job_id}/{picture.candidate}"
        try:
            return self._gateway.store.get(picture.key, sha256=picture.sha256)
        except MissingObjectError:
            raise PictureNotFoundError(name) from None
        except DamagedObjectError as error:
            raise PictureNotFoundError(name, f"picture {name} is no longer whole: {error}") from None


def _job_id(job_id: str) -> str:
    if not job_id:
        raise InvalidInputError("job_id", "is missing")
    if len(job_id) > 64 or "\0" in job_id:
        raise JobNotFoundError(job_id[:64].replace("\0", ""))
    return job_id


def _wanted(snapshot: Snapshot, candidates: set[int]) -> list[Picture]:
    """Returns the pictures that are asked for, the best first."""
    job = snapshot.job
    if job.state is not State.SUCCEEDED:
        raise JobNotSucceededError(f"job {job.id} is {job.state}; it has no pictures")
    there = {picture.candidate for picture in snapshot.pictures}
    if missing := candidates - there:
        name = f"{job.id}/{min(missing)}"
        raise PictureNotFoundError(
            name, f"candidate {min(missing)} is not among the pictures of job {job.id}"
        )
    return [picture for picture in snapshot.pictures if not candidates or picture.candidate in candidates]
