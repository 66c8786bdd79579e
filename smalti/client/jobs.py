"""Watching a job until it ends."""

import warnings
from collections.abc import Callable
from typing import Final, TypeAlias

from smalti.client.retries import RetryBudget
from smalti.errors import (
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
"""An event of a watched job: a new version of the job, new tokens, or a preview of an unfinished picture."""
OnProgress: TypeAlias = Callable[[Job], object]
"""Called with every new version of a job."""

_FINAL_STATES: Final = {JOB_STATE_SUCCEEDED, JOB_STATE_FAILED, JOB_STATE_CANCELLED, JOB_STATE_EXPIRED}

WATCH_SECONDS: Final = 60.0
"""Time until a watch is renewed, because a connection can die unnoticed. A server that is alive sends a keep-alive
message every 15 seconds."""


def has_ended(job: Job) -> bool:
    """Returns whether a job is in a final state; a state that this version does not know is not final."""
    return job.state in _FINAL_STATES


def check_succeeded(job: Job) -> None:
    """Checks that a job that has ended has pictures.

    Raises:
        SmaltiError: the job did not succeed; says why.
    """
    if job.state == JOB_STATE_FAILED:
        raise error_of_status(job.error)
    if job.state == JOB_STATE_CANCELLED:
        raise RequestCancelledError(f"job {job.id} was cancelled")
    if job.state == JOB_STATE_EXPIRED:
        raise RequestExpiredError(f"job {job.id} had not ended when its time limit ran out")


class JobWatch:
    """A watch over a job; a `ResumableStream` of events."""

    def __init__(
        self, job_id: str, since_version: int | None, budget: RetryBudget, *, include_tokens: bool = False
    ) -> None:
        """Has received nothing yet.

        Args:
            job_id: the job.
            since_version: yields only later versions; None for the job as it is, and then every change.
            budget: how long to retry when the stream breaks.
            include_tokens: also yields new tokens, and previews of unfinished pictures.
        """
        self._job_id = job_id
        self._since = since_version
        self._budget = budget
        self._include_tokens = include_tokens
        self._received = False
        self.done = False

    def request(self) -> WatchJobRequest:  # noqa: D102
        self._received = False
        return WatchJobRequest(
            job_id=self._job_id,
            since_version=self._since,
            include_rows=self._include_tokens,
            include_previews=self._include_tokens,
        )

    def take(self, response: WatchJobResponse) -> Event | None:
        """Returns the event of a message; None for a version that is not new, or an event that is not known here."""
        self._received = True
        self._budget.renew()
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

    def pause(self, error: SmaltiError | None) -> float:  # noqa: D102
        if error is None:
            error = UnavailableError(f"the server ended the watch of job {self._job_id} too early")
        elif isinstance(error, RequestExpiredError):
            # The watch was open for `WATCH_SECONDS`; it is renewed at once if the server was alive meanwhile.
            if self._received:
                return 0.0
            error = UnavailableError(f"the server sends nothing about job {self._job_id}")
        return self._budget.pause(error)


class JobFollower:
    """Follows the job of a call of `generate`: reports progress, warns, and turns its end into a result."""

    def __init__(self, job: Job, on_progress: OnProgress | None) -> None:
        """Starts with the job as it was accepted; `on_progress` is called with every version."""
        self.job = job
        self._on_progress = on_progress
        self._warned = False

    def take(self, job: Job) -> None:
        """Takes a version of the job; warns once about unknown words, and about a prompt that is too long."""
        self.job = job
        if job.HasField("prompt_reading") and not self._warned:
            self._warned = True
            if job.prompt_reading.notice:
                warnings.warn(job.prompt_reading.notice, SmaltiWarning, stacklevel=3)
            if job.prompt_reading.cut:
                warnings.warn(
                    "the prompt is longer than the model reads; its end is ignored",
                    SmaltiWarning,
                    stacklevel=3,
                )
        if self._on_progress is not None:
            self._on_progress(job)

    def result(self) -> Job:
        """Returns the job, which has ended.

        Raises:
            SmaltiError: the job did not succeed; says why.
        """
        check_succeeded(self.job)
        return self.job

    def should_cancel(self, error: BaseException) -> bool:
        """Tells whether to cancel the job after an error. If its server does not answer, it is left alone."""
        return not has_ended(self.job) and not isinstance(error, UnavailableError)
