"""The blocking client."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from types import TracebackType
from typing import Self, TypeAlias, TypeVar, Unpack

from smalti.client.base import CALL_SECONDS, CANCEL_SECONDS, RETRY_SECONDS, cancellation_note
from smalti.client.batches import Batches, Files
from smalti.client.calls import BlockingCalls
from smalti.client.downloads import DOWNLOAD_SECONDS, PictureDownload, RemotePicture
from smalti.client.jobs import WATCH_SECONDS, Event, JobFollower, JobWatch, OnProgress
from smalti.client.requests import (
    GenerateOptions,
    ListOptions,
    create_request,
    list_request,
)
from smalti.errors import SmaltiError
from smalti.rpc.channel import blocking_channel
from smalti.rpc.settings import RpcSettings, rpc_settings
from smalti.v1.image_pb2 import (
    CancelJobRequest,
    DeleteJobRequest,
    GetJobRequest,
    GetModelRequest,
    ListJobsResponse,
    ListModelsRequest,
)
from smalti.v1.image_pb2_grpc import ImageServiceStub
from smalti.v1.job_pb2 import Job
from smalti.v1.model_pb2 import Model, ModelReference

Item = TypeVar("Item")
# Inside the class, `list` is a method.
Pictures: TypeAlias = list[RemotePicture]


class Client:
    """Calls a gateway; thread-safe. Close it, or use it in a `with` block."""

    def __init__(
        self,
        server: str | None = None,
        *,
        key: str | None = None,
        call_seconds: float = CALL_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
        settings: RpcSettings | None = None,
    ) -> None:
        """Connects on first use.

        Args:
            server: the gateway, as HOST:PORT; None for `SMALTI_SERVER`, or else the gateway of `smalti up`.
            key: the key with which to call it; None for `SMALTI_KEY`, and an empty one for none.
            call_seconds: time limit for each try of a call. Streams have time limits of their own.
            retry_seconds: how long to retry when a server that has answered before does not answer. One that has
                never answered is given up after gRPC's own few tries, because its address may be wrong.
            settings: how to reach the gateway; None for the settings of the environment.

        Raises:
            InvalidInputError: the address or a setting cannot be used; names the argument or the variable.
        """
        settings = settings or rpc_settings()
        self._calls = BlockingCalls(
            server, key=key, call_seconds=call_seconds, retry_seconds=retry_seconds, settings=settings
        )
        self._channel = blocking_channel(self.server, settings)
        self._stub = ImageServiceStub(self._channel)
        self.files = Files(self._calls, self._channel)
        """Files at the gateway, such as the prompts of batches."""
        self.batches = Batches(self._calls, self._channel, self.files)
        """Batches at the gateway."""

    @property
    def server(self) -> str:
        """The address of the gateway, as HOST:PORT."""
        return self._calls.server

    def generate(
        self,
        prompt: str,
        *,
        on_progress: OnProgress | None = None,
        wait: float = 0.0,
        **options: Unpack[GenerateOptions],
    ) -> Pictures:
        """Generates pictures of a prompt and returns them, best first.

        Unknown words give a `SmaltiWarning`. If the call is interrupted, or `on_progress` raises, the job is cancelled,
        and the exception gets a note with the job's id.

        Args:
            prompt: what to draw.
            on_progress: called with every new version of the job.
            wait: how long to wait while the gateway is full, in seconds.
            **options: see `GenerateOptions`.

        Raises:
            SmaltiError: the job was refused, failed, was cancelled or expired, or the server does not answer.
        """
        job = self.create(prompt, wait=wait, **options)
        follower = JobFollower(job, on_progress)
        try:
            follower.take(job)
            with closing(self.watch(job.id, since_version=job.version)) as versions:
                for version in versions:
                    follower.take(version)
            return list(self.download(follower.result()))
        except BaseException as error:
            if follower.should_cancel(error):
                error.add_note(self._cancel_interrupted(job.id))
            else:
                error.add_note(f"it was job {job.id}")
            raise

    def create(self, prompt: str, *, wait: float = 0.0, **options: Unpack[GenerateOptions]) -> Job:
        """Creates a job and returns it as it was accepted. It runs to its end even if the client goes away.

        Args:
            prompt: what to draw.
            wait: how long to wait while the gateway is full, in seconds.
            **options: see `GenerateOptions`.

        Raises:
            OverloadedError: the gateway is still full after that time; `retry_after` says when to retry.
            SmaltiError: the request was refused, or the server does not answer.
        """
        return self._calls.call(
            self._stub.CreateImages, create_request(prompt, options), full_seconds=wait
        ).job

    def get(self, job_id: str) -> Job:
        """Returns a job as it is now.

        Raises:
            JobNotFoundError: no job has this id, or the job was deleted.
        """
        return self._calls.call(self._stub.GetJob, GetJobRequest(job_id=job_id)).job

    def list(self, **filters: Unpack[ListOptions]) -> Iterator[Job]:
        """Yields jobs, newest first; requests further pages as they are needed.

        Args:
            **filters: see `ListOptions`.

        Raises:
            InvalidInputError: a filter cannot be used; names it.
        """
        request = list_request(**filters)
        for page in self._calls.pages(self._stub.ListJobs, request):
            yield from page.jobs

    def page(self, *, page_token: str = "", **filters: Unpack[ListOptions]) -> ListJobsResponse:
        """Returns one page of what `list` yields, with the token of the next page.

        Args:
            page_token: `next_page_token` of the page before, which had the same filters; empty for the first page.
            **filters: the arguments of `list`.

        Raises:
            InvalidInputError: a filter or the token cannot be used.
        """
        request = list_request(**filters)
        request.page_token = page_token
        page: ListJobsResponse = self._calls.call(self._stub.ListJobs, request)
        return page

    def cancel(self, job_id: str) -> Job:
        """Cancels a job and returns it; a job that has ended stays as it is.

        Raises:
            JobNotFoundError: no job has this id, or the job was deleted.
        """
        return self._calls.call(self._stub.CancelJob, CancelJobRequest(job_id=job_id)).job

    def delete(self, job_id: str) -> None:
        """Deletes a job and its pictures; an open job is cancelled first.

        Raises:
            JobNotFoundError: no job has this id, or the job was deleted before.
        """
        self._calls.call(self._stub.DeleteJob, DeleteJobRequest(job_id=job_id))

    def watch(self, job_id: str, *, since_version: int | None = None) -> Generator[Job, None, None]:
        """Yields a job as it is, and again after each change, until it has ended.

        Args:
            job_id: the job.
            since_version: yields only later versions; a job that has ended is always yielded.

        Raises:
            JobNotFoundError: no job has this id, or the job was deleted.
        """
        watch = JobWatch(job_id, since_version, self._calls.stream_budget())
        for event in self._calls.resume(self._stub.WatchJob, watch, WATCH_SECONDS):
            if isinstance(event, Job):
                yield event

    def events(self, job_id: str, *, since_version: int | None = None) -> Generator[Event, None, None]:
        """Yields what `watch` yields, and new tokens, and previews of unfinished pictures; arguments as for `watch`."""
        watch = JobWatch(job_id, since_version, self._calls.stream_budget(), include_tokens=True)
        return self._calls.resume(self._stub.WatchJob, watch, WATCH_SECONDS)

    def download(
        self, job: Job | str, *, candidates: Sequence[int] | None = None
    ) -> Generator[RemotePicture, None, None]:
        """Yields the pictures of a job that has succeeded, best first, each verified against its checksum.

        Args:
            job: the job, or its id.
            candidates: only the pictures of these candidates.

        Raises:
            JobNotSucceededError: the job has no pictures.
            PictureNotFoundError: the job has no such picture, or the picture was deleted.
        """
        if isinstance(job, str) or not job.pictures:
            job = self.get(job if isinstance(job, str) else job.id)
        download = PictureDownload(job, candidates, self._calls.stream_budget())
        yield from self._calls.resume(self._stub.DownloadImages, download, DOWNLOAD_SECONDS)

    def models(self) -> Iterator[Model]:
        """Yields the models that the gateway can draw with now, without the words that they know.

        A model of which several revisions can be drawn is there several times.
        """
        for page in self._calls.pages(self._stub.ListModels, ListModelsRequest()):
            yield from page.models

    def model(self, name: str | None = None, revision: str | None = None) -> Model:
        """Returns a model, with its limits, its defaults, and the words that it knows.

        Args:
            name: the name of the model; None for the default model.
            revision: its revision; None for one that can be drawn now.

        Raises:
            ModelNotFoundError: the gateway has no such model.
        """
        reference = ModelReference(name=name or "", revision=revision or "") if name or revision else None
        return self._calls.call(self._stub.GetModel, GetModelRequest(model=reference)).model

    def close(self) -> None:
        """Closes the connection and ends the calls that use it."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cancel_interrupted(self, job_id: str) -> str:
        """Cancels the job of an interrupted call, and returns a note on what became of it."""
        result: Job | SmaltiError
        try:
            with self._calls.translated():
                request = CancelJobRequest(job_id=job_id)
                result = self._calls.attempt(self._stub.CancelJob, request, CANCEL_SECONDS).job
        except SmaltiError as error:
            result = error
        return cancellation_note(job_id, result)
