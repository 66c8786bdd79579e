"""The client for threads."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar, Unpack

from smalti.client.asking import GenerateOptions, answered, create_request, list_request
from smalti.client.base import CALL_SECONDS, CANCEL_SECONDS, PATIENCE, ClientBase, abandoned_note
from smalti.client.downloading import Downloading, Picture
from smalti.client.following import (
    DOWNLOAD_SECONDS,
    WATCH_SECONDS,
    Event,
    JobFollower,
    OnProgress,
    ResumableStream,
    Watching,
)
from smalti.errors import SmaltiError
from smalti.rpc.channel import blocking_channel
from smalti.rpc.settings import RpcSettings
from smalti.v1.image_pb2 import (
    CancelJobRequest,
    GetJobRequest,
    GetModelRequest,
    ListModelsRequest,
)
from smalti.v1.image_pb2_grpc import ImageServiceStub
from smalti.v1.job_pb2 import Job
from smalti.v1.model_pb2 import Model, ModelReference

Item = TypeVar("Item")
# `list` is a method here.
Pictures: TypeAlias = list[Picture]


class Client(ClientBase):
    """Calls a gateway; threads may share it. To be closed, or used in a `with` block."""

    def __init__(
        self,
        server: str | None = None,
        *,
        call_seconds: float = CALL_SECONDS,
        patience: float = PATIENCE,
        settings: RpcSettings | None = None,
    ) -> None:
        """Makes the client; see `ClientBase`.

        Args:
            server: see `ClientBase`.
            call_seconds: see `ClientBase`.
            patience: see `ClientBase`.
            settings: how the gateway is reached; None for the settings of the environment.
        """
        super().__init__(server, call_seconds=call_seconds, patience=patience)
        self._channel = blocking_channel(self.server, settings)
        self._stub = ImageServiceStub(self._channel)

    def generate(
        self,
        prompt: str,
        *,
        on_progress: OnProgress | None = None,
        wait: float = 0.0,
        **asked: Unpack[GenerateOptions],
    ) -> Pictures:
        """Draws pictures of a prompt, and returns them, the best first.

        Words that the model does not know give a `SmaltiWarning`. When it is interrupted, or `on_progress` raises, the
        job is cancelled. The exception carries a note with the job's id.

        Args:
            prompt: what to draw.
            on_progress: is called with every new version of the job.
            wait: how many seconds to wait for a place when the gateway is full.
            **asked: see `GenerateOptions`.

        Raises:
            SmaltiError: the job was refused, failed, was cancelled or expired, or the server does not answer.
        """
        job = self.create(prompt, wait=wait, **asked)
        following = JobFollower(job, on_progress)
        try:
            following.take(job)
            with closing(self.watch(job.id, since_version=job.version)) as versions:
                for version in versions:
                    following.take(version)
            return list(self.download(following.succeeded()))
        except BaseException as error:
            to_be_cancelled = following.is_to_be_cancelled(error)
            error.add_note(self._abandon(job.id) if to_be_cancelled else f"it was job {job.id}")
            raise

    def create(self, prompt: str, *, wait: float = 0.0, **asked: Unpack[GenerateOptions]) -> Job:
        """Asks for a job and returns it as it was accepted; it will end, whatever happens.

        Args:
            prompt: what to draw.
            wait: how many seconds to wait for a place when the gateway is full.
            **asked: see `GenerateOptions`.

        Raises:
            OverloadedError: there was no place in that time; `retry_after` says when there should be.
            SmaltiError: the request was refused, or the server does not answer.
        """
        return self._call(self._stub.CreateImages, create_request(prompt, asked), room=wait).job

    def get(self, job_id: str) -> Job:
        """Returns a job as it is now.

        Raises:
            JobNotFoundError: there is no such job, or it has been deleted.
        """
        return self._call(self._stub.GetJob, GetJobRequest(job_id=job_id)).job

    def list(
        self,
        *,
        states: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        created_since: datetime | None = None,
        created_before: datetime | None = None,
        with_pictures: bool = False,
        page_size: int = 0,
    ) -> Iterator[Job]:
        """Yields jobs, the newest first, asking for further pages as they are needed.

        Args:
            states: only jobs in one of these, such as "running".
            labels: only jobs that have all of these.
            created_since: only jobs that were created then or later.
            created_before: only jobs that were created before then.
            with_pictures: with their pictures.
            page_size: how many are asked for at a time; 0 is the server's choice.
        """
        request = list_request(
            states=states,
            labels=labels or {},
            created_since=created_since,
            created_before=created_before,
            with_pictures=with_pictures,
            page_size=page_size,
        )
        for page in self._pages(self._stub.ListJobs, request):
            yield from page.jobs

    def cancel(self, job_id: str) -> Job:
        """Cancels a job and returns it; one that has ended stays as it is.

        Raises:
            JobNotFoundError: there is no such job, or it has been deleted.
        """
        return self._call(self._stub.CancelJob, CancelJobRequest(job_id=job_id)).job

    def watch(self, job_id: str, *, since_version: int | None = None) -> Generator[Job, None, None]:
        """Yields a job as it is, and again after each change, until it has ended.

        Args:
            job_id: the job.
            since_version: only versions after this one; a job that has ended is yielded in any case.

        Raises:
            JobNotFoundError: there is no such job, or it has been deleted.
        """
        watching = Watching(job_id, since_version, self._flow_patience())
        for event in self._through(self._stub.WatchJob, watching, WATCH_SECONDS):
            if isinstance(event, Job):
                yield event

    def events(self, job_id: str, *, since_version: int | None = None) -> Generator[Event, None, None]:
        """Yields what `watch` does, and tokens as they are drawn, and pictures that are not finished."""
        watching = Watching(job_id, since_version, self._flow_patience(), with_drawing=True)
        return self._through(self._stub.WatchJob, watching, WATCH_SECONDS)

    def download(
        self, job: Job | str, *, candidates: Sequence[int] | None = None
    ) -> Generator[Picture, None, None]:
        """Yields the pictures of a job that has succeeded, the best first, each verified against its checksum.

        Args:
            job: the job, or its id.
            candidates: only the pictures of these candidates.

        Raises:
            JobNotSucceededError: it has none.
            PictureNotFoundError: there is no such picture, or it is no longer kept.
        """
        if isinstance(job, str) or not job.pictures:
            job = self.get(job if isinstance(job, str) else job.id)
        downloading = Downloading(job, candidates, self._flow_patience())
        yield from self._through(self._stub.DownloadImages, downloading, DOWNLOAD_SECONDS)

    def models(self) -> Iterator[Model]:
        """Yields the models that can be asked for, without their words."""
        for page in self._pages(self._stub.ListModels, ListModelsRequest()):
            yield from page.models

    def model(self, name: str | None = None) -> Model:
        """Returns a model, with its limits, its defaults, and the words it knows.

        Args:
            name: its name; None for the one that is used where none is named.

        Raises:
            ModelNotFoundError: there is no such model.
        """
        reference = ModelReference(name=name) if name else None
        return self._call(self._stub.GetModel, GetModelRequest(model=reference)).model

    def close(self) -> None:
        """Closes the connection, and breaks off what goes over it."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _abandon(self, job_id: str) -> str:
        """Cancels a job for which nobody waits any more; returns what is to be said of it."""
        cancelled: Job | SmaltiError
        try:
            with answered():
                request = CancelJobRequest(job_id=job_id)
                cancelled = self._stub.CancelJob(request, timeout=CANCEL_SECONDS).job
        except SmaltiError as error:
            cancelled = error
        return abandoned_note(job_id, cancelled)

    def _call(self, method: Callable[..., Any], request: Any, *, room: float = 0.0) -> Any:
        """Makes a call, again as long as there is patience."""
        patience = self._patience(room)
        while True:
            try:
                with answered():
                    response = method(request, timeout=self._call_seconds)
                self._note(None)
                return response
            except SmaltiError as error:
                self._note(error)
                pause = patience.pause(error)
            time.sleep(pause)

    def _pages(self, method: Callable[..., Any], request: Any) -> Iterator[Any]:
        while True:
            page = self._call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _through(
        self, method: Callable[..., Any], flow: ResumableStream[Any, Any, Item], seconds: float
    ) -> Generator[Item, None, None]:
        """Yields what a flow brings, over as many streams as it takes."""
        while not flow.done:
            broken: SmaltiError | None = None
            try:
                with closing(self._stream(method, flow.request(), seconds)) as responses:
                    for response in responses:
                        item = flow.take(response)
                        if item is not None:
                            yield item
                        if flow.done:
                            return
            except SmaltiError as error:
                broken = error
            time.sleep(flow.pause(broken))

    def _stream(self, method: Callable[..., Any], request: Any, seconds: float) -> Generator[Any, None, None]:
        call = method(request, timeout=seconds)
        try:
            while True:
                with answered():
                    response = next(call, None)
                if response is None:
                    return
                self._note(None)
                yield response
        finally:
            call.cancel()
