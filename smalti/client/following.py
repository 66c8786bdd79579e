"""Following a job to its end: what has been seen of it, and how long to wait for a server that does not answer."""

import random
import time
import warnings
from collections.abc import Callable
from typing import Protocol, TypeAlias, TypeVar

from smalti.errors import (
    OverloadedError,
    RequestCancelledError,
    RequestExpiredError,
    SmaltiError,
    SmaltiWarning,
    UnavailableError,
)
from smalti.rpc.errors import error_of_status
from smalti.v1.generator_pb2 import RowsDrawn
from smalti.v1.image_pb2 import Preview, WatchJobRequest, WatchJobResponse
from smalti.v1.job_pb2 import (
    JOB_STATE_CANCELLED,
    JOB_STATE_EXPIRED,
    JOB_STATE_FAILED,
    JOB_STATE_SUCCEEDED,
    Job,
)

Event: TypeAlias = Job | RowsDrawn | Preview
"""What a job that is watched may tell: a new version of it, tokens that were drawn, a picture that is not finished."""
OnProgress: TypeAlias = Callable[[Job], object]

_FINAL = {JOB_STATE_SUCCEEDED, JOB_STATE_FAILED, JOB_STATE_CANCELLED, JOB_STATE_EXPIRED}

FIRST_PAUSE, MAX_PAUSE_SECONDS = 0.25, 5.0
WATCH_SECONDS = 60.0
"""How long a watch lasts before it is taken up again: over a connection that has died unseen, nothing more comes. From
a server that lives there is a sign of life every 15 seconds."""
DOWNLOAD_SECONDS = 300.0
"""How long a download lasts before it is taken up again, with what is missing."""


def has_ended(job: Job) -> bool:
    """Tells whether a job is in a final state; one that this code does not know is none."""
    return job.state in _FINAL


class RetryBudget:
    """How long to go on with a server that does not answer, or has no room."""

    def __init__(self, seconds: float, *, room: float, reached: bool) -> None:
        """Begins now.

        Args:
            seconds: how long a server that has answered before may not answer (UNAVAILABLE).
            room: how long it may be full (RESOURCE_EXHAUSTED).
            reached: whether it has ever answered; one that has not gets no second chance: its address may be wrong.
        """
        self._seconds = seconds
        self._room = room
        self._reached = reached
        self._since = time.monotonic()
        self._pauses = 0

    def renew(self) -> None:
        """Begins anew: the server has answered."""
        self._reached = True
        self._since = time.monotonic()
        self._pauses = 0

    def pause(self, error: SmaltiError) -> float:
        """Returns how many seconds to wait before the next try; raises the error where there is to be none."""
        if isinstance(error, UnavailableError):
            limit = self._seconds if self._reached else 0.0
        elif isinstance(error, OverloadedError):
            limit = self._room
        else:
            raise error
        pause = min(MAX_PAUSE_SECONDS, FIRST_PAUSE * 2**self._pauses) * random.uniform(0.75, 1.25)
        pause = max(pause, getattr(error, "retry_after", None) or 0.0)
        if time.monotonic() + pause - self._since > limit:
            raise error
        self._pauses += 1
        return pause


RequestKind = TypeVar("RequestKind", covariant=True)
ResponseKind = TypeVar("ResponseKind", contravariant=True)
Item = TypeVar("Item", covariant=True)


class ResumableStream(Protocol[RequestKind, ResponseKind, Item]):
    """What comes from a server in a stream that may break, and is then taken up again."""

    @property
    def done(self) -> bool:
        """Whether all is there."""

    def request(self) -> RequestKind:
        """Returns what the next stream is asked for: what is missing."""

    def take(self, response: ResponseKind) -> Item | None:
        """Returns what a message brings, if it brings anything."""

    def pause(self, error: SmaltiError | None) -> float:
        """Returns how many seconds to wait before the next stream; raises the error where there is to be none.

        Args:
            error: why the stream has broken; None when it ended too early.
        """


class Watching:
    """A watch over a job, through as many streams as it takes."""

    def __init__(
        self, job_id: str, since_version: int | None, patience: RetryBudget, *, with_drawing: bool = False
    ) -> None:
        """Has seen nothing yet.

        Args:
            job_id: the job.
            since_version: only versions after this one are wanted; None for the job as it is, and then every change.
            patience: how long to go on when the stream breaks.
            with_drawing: also tokens as they are drawn, and pictures that are not finished.
        """
        self._job_id = job_id
        self._since = since_version
        self._patience = patience
        self._with_drawing = with_drawing
        self._heard = False
        self.done = False
        """Whether the job has been seen in a final state."""

    def request(self) -> WatchJobRequest:
        """See `ResumableStream`."""
        self._heard = False
        return WatchJobRequest(
            job_id=self._job_id,
            since_version=self._since,
            include_rows=self._with_drawing,
            include_previews=self._with_drawing,
        )

    def take(self, response: WatchJobResponse) -> Event | None:
        """Returns what a message tells; None when it is nothing new, or nothing that this code knows."""
        self._heard = True
        self._patience.renew()
        match response.WhichOneof("event"):
            case "job":
                job = response.job
                self.done = has_ended(job)
                if self._since is not None and job.version <= self._since and not self.done:
                    return None
                self._since = max(job.version, self._since or 0)
                return job
            case "rows":
                return response.rows
            case "preview":
                return response.preview
        return None

    def pause(self, error: SmaltiError | None) -> float:
        """See `ResumableStream`."""
        if error is None:
            error = UnavailableError(f"the server has ceased to tell of job {self._job_id}")
        elif isinstance(error, RequestExpiredError):
            if self._heard:
                return 0.0
            error = UnavailableError(f"the server tells nothing of job {self._job_id}")
        return self._patience.pause(error)


class JobFollower:
    """What `generate` knows of its job."""

    def __init__(self, job: Job, on_progress: OnProgress | None) -> None:
        """Knows the job as it was accepted; `on_progress` is told of every version that is taken."""
        self.job = job
        self._on_progress = on_progress
        self._warned = False

    def take(self, job: Job) -> None:
        """Takes a version of the job; warns, once, of unknown words, and of a prompt whose end is cut off."""
        self.job = job
        if job.HasField("prompt_reading") and not self._warned:
            self._warned = True
            if job.prompt_reading.notice:
                warnings.warn(job.prompt_reading.notice, SmaltiWarning, stacklevel=3)
            if job.prompt_reading.cut:
                warnings.warn(
                    "the prompt is longer than the model reads; its end is not drawn",
                    SmaltiWarning,
                    stacklevel=3,
                )
        if self._on_progress is not None:
            self._on_progress(job)

    def succeeded(self) -> Job:
        """Returns the job.

        Raises:
            SmaltiError: it has not succeeded; says why.
        """
        job = self.job
        if job.state == JOB_STATE_FAILED:
            raise error_of_status(job.error)
        if job.state == JOB_STATE_CANCELLED:
            raise RequestCancelledError(f"job {job.id} was cancelled")
        if job.state == JOB_STATE_EXPIRED:
            raise RequestExpiredError(f"job {job.id} had not ended when its time ran out")
        return job

    def is_to_be_cancelled(self, error: BaseException) -> bool:
        """Tells whether the job goes on with nobody to wait for it; one whose server does not answer is left to it."""
        return not has_ended(self.job) and not isinstance(error, UnavailableError)
