"""A scripted gateway in memory for tests of clients.

Its jobs go through fixed states, and its streams break on demand, which those of a real gateway do not.
"""

import asyncio
import contextlib
import hashlib
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
from PIL import Image

from harness.batch_service import ScriptedBatches
from harness.loop_thread import LoopThread
from harness.scripted import Faults, page
from smalti.errors import (
    InvalidInputError,
    JobNotFoundError,
    JobNotSucceededError,
    ModelNotFoundError,
    NotSupportedError,
    RefusedByPolicyError,
    RequestIdReusedError,
    UnavailableError,
)
from smalti.parameters import SamplingParameters
from smalti.pictures import plain_png_bytes
from smalti.rpc.conversion import sampling_message
from smalti.rpc.errors import status_of
from smalti.rpc.identity import Authenticate
from smalti.rpc.server import Server, serve
from smalti.rpc.settings import RpcSettings
from smalti.v1 import image_pb2, job_pb2
from smalti.v1.batch_pb2_grpc import add_BatchServiceServicer_to_server
from smalti.v1.file_pb2_grpc import add_FileServiceServicer_to_server
from smalti.v1.image_pb2_grpc import ImageServiceServicer, add_ImageServiceServicer_to_server
from smalti.v1.model_pb2 import Model, ModelReference

MODEL = Model(reference=ModelReference(name="wire", revision=f"sha256:{'0' * 64}"), default=True)
ROWS = 4
HOLDS = {"queue": 1, "wait": 2}
"""The version after which a job waits for `go_on`, by prompt."""
ERRORS = {
    "fail": NotSupportedError("it cannot be drawn"),
    "refuse": RefusedByPolicyError("the operator's policy refuses every picture of the job"),
}
"""The errors of jobs that fail, by prompt."""
CHUNK_BYTES = 100
"""The size in bytes of a chunk of a file."""

Context = Any


def png(candidate: int) -> bytes:
    """Returns the file of a candidate's picture."""
    return plain_png_bytes(Image.new("RGB", (32, 32), (candidate, 0, 0))) + bytes(3 * CHUNK_BYTES)


class ScriptedGateway(Faults, ImageServiceServicer):
    """An image service with a script. Jobs with the prompts "queue" and "wait" wait; those in `ERRORS` fail."""

    def __init__(self) -> None:
        """Creates a service without jobs and faults."""
        super().__init__()
        self.jobs: dict[str, list[job_pb2.Job]] = {}
        """The versions of each job."""
        self.models = [MODEL]
        """What ListModels returns."""
        self.failures: dict[str, list[BaseException]] = defaultdict(list)
        """Raised by the next calls of a method, one each, before they do anything."""
        self.silent_ends: list[int] = []
        """The number of messages after which the next watches end with OK, although their job has not ended."""
        self.go_on = asyncio.Event()
        self.watching = threading.Event()
        """Set once a watch waits for `go_on`."""

    async def CreateImages(  # noqa: N802
        self, request: image_pb2.CreateImagesRequest, context: Context
    ) -> image_pb2.CreateImagesResponse:
        """Creates a job."""
        self._begin("CreateImages", request)
        known = next((jobs for jobs in self.jobs.values() if jobs[0].request_id == request.request_id), None)
        if known is None:
            if request.parameters.sampling.HasField("top_p") and request.parameters.sampling.top_p > 1:
                raise InvalidInputError("parameters.sampling.top_p", "is not between 0 and 1")
            if request.parameters.model.name not in ("", "wire"):
                raise ModelNotFoundError("there is no such model", request.parameters.model.name)
            known = self.jobs[f"job-{len(self.jobs)}"] = self._new_versions(request, f"job-{len(self.jobs)}")
        elif known[0].parameters.prompt != request.parameters.prompt:
            raise RequestIdReusedError(known[0].id)
        self._lose("CreateImages")
        return image_pb2.CreateImagesResponse(job=known[0])

    async def GetJob(  # noqa: N802
        self, request: image_pb2.GetJobRequest, context: Context
    ) -> image_pb2.GetJobResponse:
        """Returns the last version of a job."""
        self._begin("GetJob", request)
        return image_pb2.GetJobResponse(job=self._versions_of(request.job_id)[-1])

    async def ListJobs(  # noqa: N802
        self, request: image_pb2.ListJobsRequest, context: Context
    ) -> image_pb2.ListJobsResponse:
        """Returns a page of two jobs."""
        self._begin("ListJobs", request)
        jobs, token = page([each[-1] for each in reversed(self.jobs.values())], request.page_token, 2)
        return image_pb2.ListJobsResponse(jobs=jobs, next_page_token=token)

    async def CancelJob(  # noqa: N802
        self, request: image_pb2.CancelJobRequest, context: Context
    ) -> image_pb2.CancelJobResponse:
        """Replaces the remaining versions of a job by its cancellation."""
        self._begin("CancelJob", request)
        versions = self._versions_of(request.job_id)
        cancelled = job_pb2.Job()
        cancelled.CopyFrom(versions[1])
        cancelled.state, cancelled.version = job_pb2.JOB_STATE_CANCELLED, versions[1].version + 1
        versions[2:] = [cancelled]
        self.go_on.set()
        return image_pb2.CancelJobResponse(job=cancelled)

    async def DeleteJob(  # noqa: N802
        self, request: image_pb2.DeleteJobRequest, context: Context
    ) -> image_pb2.DeleteJobResponse:
        """Deletes a job."""
        self._begin("DeleteJob", request)
        self._versions_of(request.job_id)
        del self.jobs[request.job_id]
        return image_pb2.DeleteJobResponse()

    async def WatchJob(  # noqa: N802
        self, request: image_pb2.WatchJobRequest, context: Context
    ) -> AsyncIterator[image_pb2.WatchJobResponse]:
        """Sends the versions of a job, with heartbeats in between."""
        self._begin("WatchJob", request)
        versions = self._versions_of(request.job_id)
        since = request.since_version if request.HasField("since_version") else 0
        ends = self.silent_ends.pop(0) if self.silent_ends else None
        breaks = self._breaks("WatchJob")
        sent = 0
        while True:
            following = [version for version in versions if version.version > since]
            if not following:
                yield image_pb2.WatchJobResponse(job=versions[-1])
                return
            if following[0].version > HOLDS.get(following[0].parameters.prompt, len(versions)):
                self.watching.set()
                await self.go_on.wait()
                following = [version for version in versions if version.version > since]
            yield image_pb2.WatchJobResponse()
            yield image_pb2.WatchJobResponse(job=following[0])
            since, sent = following[0].version, sent + 1
            if since == versions[-1].version or sent == ends:
                return
            if sent == breaks:
                raise UnavailableError("the connection broke")

    async def DownloadImages(  # noqa: N802
        self, request: image_pb2.DownloadImagesRequest, context: Context
    ) -> AsyncIterator[image_pb2.DownloadImagesResponse]:
        """Sends files in chunks."""
        self._begin("DownloadImages", request)
        job = self._versions_of(request.job_id)[-1]
        if job.state != job_pb2.JOB_STATE_SUCCEEDED:
            raise JobNotSucceededError(f"job {job.id} has not succeeded")
        breaks, sent = self._breaks("DownloadImages"), 0
        for picture in job.pictures:
            if request.candidates and picture.candidate not in request.candidates:
                continue
            content = png(picture.candidate)
            if self.damaged:
                self.damaged -= 1
                content = content[:-1] + b"x"
            for start in range(0, len(content), CHUNK_BYTES):
                first = picture if start == 0 else None
                yield image_pb2.DownloadImagesResponse(
                    picture=first, data=content[start : start + CHUNK_BYTES]
                )
                sent += 1
                if sent == breaks:
                    raise UnavailableError("the connection broke")

    async def ListModels(  # noqa: N802
        self, request: image_pb2.ListModelsRequest, context: Context
    ) -> image_pb2.ListModelsResponse:
        """Returns the models."""
        self._begin("ListModels", request)
        return image_pb2.ListModelsResponse(models=self.models)

    async def GetModel(  # noqa: N802
        self, request: image_pb2.GetModelRequest, context: Context
    ) -> image_pb2.GetModelResponse:
        """Returns the only model."""
        self._begin("GetModel", request)
        if request.model.name not in ("", "wire"):
            raise ModelNotFoundError("there is no such model", request.model.name)
        return image_pb2.GetModelResponse(model=MODEL)

    def _begin(self, method: str, request: Any) -> None:
        self.calls[method].append(request)
        if self.failures[method]:
            raise self.failures[method].pop(0)

    def _versions_of(self, job_id: str) -> list[job_pb2.Job]:
        if job_id not in self.jobs:
            raise JobNotFoundError(job_id)
        return self.jobs[job_id]

    def _new_versions(self, request: image_pb2.CreateImagesRequest, name: str) -> list[job_pb2.Job]:
        """Returns all versions of a job: queued, running, one for each row, ended."""
        base = job_pb2.Job(id=name, request_id=request.request_id, parameters=request.parameters)
        base.parameters.n, base.parameters.candidates = request.parameters.n or 3, 4
        base.parameters.model.CopyFrom(MODEL.reference)
        base.parameters.sampling.CopyFrom(sampling_message(SamplingParameters()))
        base.parameters.sampling.MergeFrom(request.parameters.sampling)
        base.labels.update(request.labels)
        versions = [base]
        base.version, base.state, base.jobs_ahead = 1, job_pb2.JOB_STATE_QUEUED, 2
        for row in range(ROWS + 1):
            job = job_pb2.Job()
            job.CopyFrom(base)
            job.ClearField("jobs_ahead")
            job.version, job.state = row + 2, job_pb2.JOB_STATE_RUNNING
            job.progress.rows, job.progress.rows_drawn = ROWS, row
            job.prompt_reading.drawn = request.parameters.prompt
            if "hippo" in request.parameters.prompt:
                job.prompt_reading.notice = 'the model does not know "hippo"; drawing "an elephant"'
            versions.append(job)
        last = job_pb2.Job()
        last.CopyFrom(versions[-1])
        last.version += 1
        if request.parameters.prompt in ERRORS:
            last.state = job_pb2.JOB_STATE_FAILED
            last.error.CopyFrom(status_of(ERRORS[request.parameters.prompt]))
        else:
            last.state = job_pb2.JOB_STATE_SUCCEEDED
            for rank in range(base.parameters.n):
                content = png(rank + 10)
                last.pictures.add(
                    candidate=rank + 10, rank=rank, score=1 - rank / 10, width=32, height=32,
                    size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest(),
                )  # fmt: skip
        return [*versions, last]


class ServedGateway:
    """Runs a `ScriptedGateway` in a thread."""

    def __init__(self, settings: RpcSettings | None = None, authenticate: Authenticate | None = None) -> None:
        """Starts serving, by default on a free port and for everybody."""
        self._authenticate = authenticate
        self.gateway = ScriptedGateway()
        self.batches = ScriptedBatches()
        self._settings = settings or RpcSettings()
        self._thread = LoopThread("gateway")
        try:
            self._server = self._serve(self._settings)
        except BaseException:
            self._thread.close()
            raise
        self.address: str = self._server.address

    def go_on(self) -> None:
        """Lets waiting jobs continue."""
        self._thread.loop.call_soon_threadsafe(self.gateway.go_on.set)

    def stop(self) -> None:
        """Stops serving, and aborts all calls."""
        self._thread.run(self._server.stop(0))

    def start(self) -> None:
        """Serves again on the same port, with the same jobs."""
        self._server = self._serve(self._settings.model_copy(update={"port": self._server.port}))

    def close(self) -> None:
        """Stops serving, and ends the thread."""
        try:
            self.stop()
        finally:
            self._thread.close()

    def _serve(self, settings: RpcSettings) -> Server:
        return self._thread.run(
            serve(self._register, healthy=lambda: True, settings=settings, authenticate=self._authenticate)
        )

    def _register(self, server: grpc.aio.Server) -> None:
        add_ImageServiceServicer_to_server(self.gateway, server)
        add_BatchServiceServicer_to_server(self.batches, server)
        add_FileServiceServicer_to_server(self.batches, server)


@contextlib.contextmanager
def served_gateway(
    settings: RpcSettings | None = None, authenticate: Authenticate | None = None
) -> Iterator[ServedGateway]:
    """Serves a scripted gateway while the block runs."""
    served = ServedGateway(settings, authenticate)
    try:
        yield served
    finally:
        served.close()
