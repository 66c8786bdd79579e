"""`ImageService`: the calls of the API, on top of the gateway."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
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
from smalti.policy import PicturesToCheck, PromptToCheck, Verdict
from smalti.queue import current_trace
from smalti.rpc.conversion import priority_of
from smalti.rpc.errors import within
from smalti.services.gateway.api.catalogue import describe, without_words
from smalti.services.gateway.api.conversion import job_message, picture_message, urls_of
from smalti.services.gateway.api.decoders import Connect, Decoders
from smalti.services.gateway.api.initial_image import InitialImages
from smalti.services.gateway.api.previews import PreviewRenderer
from smalti.services.gateway.api.requests import (
    check_request_id,
    check_view,
    content_hash,
    page_size,
    page_token,
    parse_job_filter,
    parse_job_spec,
    parse_page_token,
    required_id,
)
from smalti.services.gateway.api.watch import KEEPALIVE_SECONDS, WatchHandler
from smalti.services.gateway.api.webhook_requests import WebhookRequests
from smalti.services.gateway.database.calls import call_database, in_thread
from smalti.services.gateway.database.tables import JobState, PageCursor, ScoredCandidate
from smalti.services.gateway.gateway import MARKER_SECONDS, Gateway
from smalti.services.gateway.identity import (
    ANYONE,
    check_priority,
    current_principal,
    report_admin,
)
from smalti.services.gateway.jobs.repository import JobSnapshot
from smalti.services.gateway.jobs.spec import JobSpec
from smalti.services.gateway.models import RevisionState
from smalti.services.gateway.policy.content_policy import Subject
from smalti.storage import BreakerStore
from smalti.v1 import image_pb2, job_pb2, model_pb2
from smalti.v1.image_pb2_grpc import ImageServiceServicer

if TYPE_CHECKING:
    from smalti.v1.decoder_pb2_grpc import DecoderServiceAsyncStub

log = logging.getLogger(__name__)

PIECE_BYTES: Final = 2**20
"""Bytes of a file per message of DownloadImages."""
MAX_PAGE_BYTES: Final = 3 * 2**20
"""Maximum size of the jobs on a page. One more job and the message still stays below 4 MiB."""
Result = TypeVar("Result")


class ImageServicer(ImageServiceServicer):
    """Answers calls in the event loop; calls of the database and the store run in threads."""

    def __init__(
        self,
        gateway: Gateway,
        decoder: "DecoderServiceAsyncStub | None" = None,
        *,
        connect: Connect | None = None,
        keepalive_seconds: float = KEEPALIVE_SECONDS,
    ) -> None:
        """Creates the servicer.

        Args:
            gateway: the jobs.
            decoder: renders previews and encodes initial images for the configured model; None if none is set.
            connect: opens channels to decoders that have said hello; None calls no other.
            keepalive_seconds: maximum time without a message of WatchJob.
        """
        self._gateway = gateway
        self._jobs = gateway.jobs
        self._webhooks = WebhookRequests(gateway.context)
        self._store = BreakerStore(gateway.context.store)
        self._url_of = urls_of(gateway.context, self._store)
        self._catalogue = gateway.context.catalogue
        self._settings = gateway.context.settings
        self._decoders = decoders = Decoders(self._catalogue, decoder, connect)
        self.images = InitialImages(gateway, self._store, decoders)
        """Turns initial images into tokens."""
        policy = gateway.context.policy
        previews = PreviewRenderer(
            gateway.watchers.preview_tokens,
            lambda job: decoders.of(self._catalogue.card_of(job)),
            check=self._check_previews if policy.asks_pictures else None,
            is_away=lambda: policy.pictures_wait,
        )
        self._watch_handler = WatchHandler(
            gateway.watchers,
            partial(self._call, self._get),
            previews=previews,
            preview_seconds=self._settings.previews,
            keepalive_seconds=keepalive_seconds,
        )

    async def CreateImages(  # noqa: D102, N802
        self, request: image_pb2.CreateImagesRequest, context: Any
    ) -> image_pb2.CreateImagesResponse:
        principal = current_principal()
        check_priority(principal, priority_of(request.priority))
        request_id = check_request_id(request.request_id)
        request_hash = content_hash(request)
        if request_id is not None:
            # First of all: a repeated call returns the job of the first one, whatever has changed since.
            found = await self._call(
                self._jobs.find_request, request_id, request_hash, tenant=principal.tenant
            )
            if found is not None:
                return image_pb2.CreateImagesResponse(job=await self._message(found, full=True))
        state = await self._choose(request.parameters)
        job_spec = parse_job_spec(request, state, self._settings)
        job_spec = replace(
            job_spec,
            request_id=request_id,
            request_hash=request_hash,
            trace=current_trace(),
            tenant=principal.tenant,
        )
        if request.HasField("webhook"):
            job_spec = replace(
                job_spec, webhook=await self._call(self._webhooks.check, request.webhook, principal.tenant)
            )
        policy, has_picture = self._gateway.context.policy, request.parameters.HasField("initial_image")
        if policy.checks_prompts or has_picture:
            # What costs much comes after what costs little.
            with _within_parameters():
                await self._call(self._jobs.check_capacity, job_spec)
        if policy.checks_prompts:
            await self._check_policy(job_spec)
        if has_picture:
            with within("parameters.initial_image"):
                given = await self.images.tokens(request.parameters.initial_image, state.card)
            job_spec = replace(job_spec, given=given)
        with _within_parameters():
            snapshot = await self._call(self._jobs.create, job_spec)
        return image_pb2.CreateImagesResponse(job=await self._message(snapshot, full=True))

    async def GetJob(self, request: image_pb2.GetJobRequest, context: Any) -> image_pb2.GetJobResponse:  # noqa: D102, N802
        check_view(request.view)
        full = request.view != image_pb2.JOB_VIEW_BASIC
        snapshot = await self._call(self._visible, _job_id(request.job_id), "GetJob", full=full)
        message = await self._message(snapshot, full=full)
        return image_pb2.GetJobResponse(job=message)

    async def ListJobs(self, request: image_pb2.ListJobsRequest, context: Any) -> image_pb2.ListJobsResponse:  # noqa: D102, N802
        check_view(request.view)
        size = page_size(request.page_size)
        principal = current_principal()
        matching = replace(parse_job_filter(request, self._settings), tenant=principal.scope)
        after = parse_page_token(request)
        full = request.view == image_pb2.JOB_VIEW_FULL
        # One job more than the page holds shows whether there is another page.
        found = await self._call(self._jobs.page, matching, after=after, limit=size + 1, full=full)
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
            response.next_page_token = page_token(request, PageCursor(last.created, last.id))
        return response

    async def CancelJob(  # noqa: D102, N802
        self, request: image_pb2.CancelJobRequest, context: Any
    ) -> image_pb2.CancelJobResponse:
        snapshot = await self._cancel(_job_id(request.job_id), "CancelJob")
        return image_pb2.CancelJobResponse(job=await self._message(snapshot, full=True))

    async def DeleteJob(  # noqa: D102, N802
        self, request: image_pb2.DeleteJobRequest, context: Any
    ) -> image_pb2.DeleteJobResponse:
        snapshot = await self._cancel(_job_id(request.job_id), "DeleteJob")
        await self._call(self._jobs.delete, snapshot.job.id, tenant=current_principal().scope)
        return image_pb2.DeleteJobResponse()

    async def WatchJob(  # noqa: D102, N802
        self, request: image_pb2.WatchJobRequest, context: Any
    ) -> AsyncIterator[image_pb2.WatchJobResponse]:
        job_id = _job_id(request.job_id)
        if current_principal() is not ANYONE:
            # Here, since watchers share what is read later, whoever they are.
            await self._call(self._visible, job_id, "WatchJob", full=False)
        events = self._watch_handler.watch(
            job_id,
            since=request.since_version if request.HasField("since_version") else -1,
            rows=request.include_rows,
            previews=request.include_previews,
        )
        async with aclosing(events):
            async for event in events:
                yield event

    async def DownloadImages(  # noqa: D102, N802
        self, request: image_pb2.DownloadImagesRequest, context: Any
    ) -> AsyncIterator[image_pb2.DownloadImagesResponse]:
        snapshot = await self._call(self._visible, _job_id(request.job_id), "DownloadImages")
        for picture in _selected(snapshot, set(request.candidates)):
            content = await in_thread(self._gateway.store_threads, self._read, picture)
            message = await self._call(picture_message, picture, self._url_of)
            for start in range(0, len(content), PIECE_BYTES):
                yield image_pb2.DownloadImagesResponse(
                    picture=message if start == 0 else None, data=content[start : start + PIECE_BYTES]
                )

    async def ListModels(  # noqa: D102, N802
        self, request: image_pb2.ListModelsRequest, context: Any
    ) -> image_pb2.ListModelsResponse:
        page_size(request.page_size)
        if request.page_token:
            raise InvalidInputError("page_token", "is damaged; start with the first page")
        fleet = self._catalogue.fleet
        models = [without_words(self._describe(state)) for state in fleet.available]
        return image_pb2.ListModelsResponse(models=models)

    async def GetModel(self, request: image_pb2.GetModelRequest, context: Any) -> image_pb2.GetModelResponse:  # noqa: D102, N802
        state = self._catalogue.find(request.model.name, request.model.revision)
        return image_pb2.GetModelResponse(model=self._describe(state))

    def _describe(self, state: RevisionState) -> model_pb2.Model:
        return describe(
            state,
            self._settings,
            is_default=self._catalogue.is_default(state),
            has_decoder=self._decoders.of(state.card) is not None,
        )

    async def _choose(self, parameters: job_pb2.ImageParameters) -> RevisionState:
        """Returns the revision that a new job is bound to.

        Raises:
            ModelNotFoundError: the request asks for a model, or a revision, that is not known.
            UnavailableError: the model has no workers now.
        """
        asked, image = parameters.model, parameters.initial_image
        if asked.revision or image.WhichOneof("source") != "picture":
            return self._catalogue.choose(asked.name, asked.revision)
        with within("parameters.initial_image"):
            made_by = await self.images.made_by(image.picture)
        return self._catalogue.choose(asked.name, fits=made_by.has_same_tokens)

    async def _cancel(self, job_id: str, method: str) -> JobSnapshot:
        """Cancels a job, and waits a moment until the stages are notified; no thread waits with it."""
        principal = current_principal()
        snapshot = await self._call(self._jobs.cancel, job_id, tenant=principal.scope)
        report_admin(principal, method, snapshot.job.tenant, job=snapshot.job.id)
        if marking := self._gateway.mark(snapshot):
            await asyncio.wait([asyncio.wrap_future(marking)], timeout=MARKER_SECONDS)
        return snapshot

    async def _call(self, function: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        """Runs a function of the database in a thread, within the tracing context of this call.

        Raises:
            DatabaseUnavailableError: it has not returned in time; what it has begun may still be stored.
        """
        seconds = self._settings.database_timeout
        return await call_database(self._gateway.threads, seconds, function, *arguments, **named)

    async def _check_policy(self, job_spec: JobSpec) -> None:
        """Raises `RefusedByPolicyError`, or `UnavailableError` if the policy's hook does not answer, and must."""
        policy, card = self._gateway.context.policy, job_spec.card
        asked = PromptToCheck(
            prompt=job_spec.prompt,
            labels=job_spec.labels,
            model=card.name if card else "",
            revision=card.revision if card else "",
        )
        await in_thread(self._gateway.policy_threads, policy.check_prompt, asked)

    async def _check_previews(self, asked: PicturesToCheck) -> Sequence[Verdict]:
        check = self._gateway.context.policy.check_pictures
        return await in_thread(self._gateway.policy_threads, check, asked, Subject.PREVIEW)

    async def _message(self, snapshot: JobSnapshot, *, full: bool) -> job_pb2.Job:
        if snapshot.pictures:
            # In a thread, since signing the URLs takes time.
            return await self._call(job_message, snapshot, self._url_of, full=full)
        return job_message(snapshot, self._url_of, full=full)

    def _visible(self, job_id: str, method: str, *, full: bool = True) -> JobSnapshot:
        """Returns a job that the caller may see; raises `JobNotFoundError` for any other."""
        principal = current_principal()
        snapshot = self._jobs.get(job_id, full=full, tenant=principal.scope)
        report_admin(principal, method, snapshot.job.tenant, job=snapshot.job.id)
        return snapshot

    def _get(self, job_id: str, *, full: bool = True) -> tuple[JobSnapshot, job_pb2.Job]:
        snapshot = self._jobs.get(job_id, full=full)
        return snapshot, job_message(snapshot, self._url_of, full=full)

    def _read(self, picture: ScoredCandidate) -> bytes:
        name = f"{picture.job_id}/{picture.candidate}"
        try:
            return self._store.get(picture.key, sha256=picture.sha256)
        except MissingObjectError:
            raise PictureNotFoundError(name) from None
        except DamagedObjectError as error:
            log.warning("a damaged picture is not served: %s", error)
            raise PictureNotFoundError(name, f"picture {name} is damaged") from None


@contextmanager
def _within_parameters() -> Iterator[None]:
    """Prefixes the field of an error with "parameters", unless it is one of the request itself."""
    try:
        yield
    except InvalidInputError as error:
        if error.field in image_pb2.CreateImagesRequest.DESCRIPTOR.fields_by_name:
            raise
        raise InvalidInputError(f"parameters.{error.field}", error.problem) from error


def _job_id(job_id: str) -> str:
    return required_id("job_id", job_id, JobNotFoundError)


def _selected(snapshot: JobSnapshot, candidates: set[int]) -> list[ScoredCandidate]:
    """Returns the pictures of the given candidates, or all if none are given, the best first."""
    job = snapshot.job
    if job.state is not JobState.SUCCEEDED:
        raise JobNotSucceededError(f"job {job.id} is {job.state}; only a succeeded job has pictures")
    known = {picture.candidate for picture in snapshot.pictures}
    if missing := candidates - known:
        name = f"{job.id}/{min(missing)}"
        raise PictureNotFoundError(
            name, f"candidate {min(missing)} is not among the pictures of job {job.id}"
        )
    return [picture for picture in snapshot.pictures if not candidates or picture.candidate in candidates]
