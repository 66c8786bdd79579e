"""Watching a job or a batch until it ends."""

import warnings
from collections.abc import Callable
from typing import Final, Generic, TypeAlias, TypeVar

from smalti.client.retries import RetryBudget
from smalti.errors import (
    RequestCancelledError,
    RequestExpiredError,
    SmaltiError,
    SmaltiWarning,
    UnavailableError,
)
from smalti.rpc.errors import error_of_status
from smalti.v1.batch_pb2 import (
    BATCH_STATE_CANCELLED,
    BATCH_STATE_EXPIRED,
    BATCH_STATE_FAILED,
    BATCH_STATE_SUCCEEDED,
    Batch,
)
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
Version = TypeVar("Version", Job, Batch)
OnProgress: TypeAlias = Callable[[Job], object]
"""Called with every new version of a job."""

_FINAL_STATES: Final = {JOB_STATE_SUCCEEDED, JOB_STATE_FAILED, JOB_STATE_CANCELLED, JOB_STATE_EXPIRED}

_FINAL_BATCH_STATES: Final = {
    BATCH_STATE_SUCCEEDED,
    BATCH_STATE_FAILED,
    BATCH_STATE_CANCELLED,
    BATCH_STATE_EXPIRED,
}

WATCH_SECONDS: Final = 60.0
"""Time until a watch is renewed, because a connection can die unnoticed. A server that is alive sends a keep-alive
message every 15 seconds."""


def has_ended(work: Job | Batch) -> bool:
    """Returns whether a job or a batch is in a final state; a state that is not known here is not final."""
    if isinstance(work, Batch):
        return work.state in _FINAL_BATCH_STATES
    return work.state in _FINAL_STATES


def check_succeeded(work: Job | Batch) -> None:
    """Checks that a job that has ended has pictures, or that a batch that has ended is complete.

    Raises:
        SmaltiError: the job or the batch did not succeed; says why.
    """
    failed: int
    cancelled: int
    expired: int
    if isinstance(work, Batch):
        name = f"batch {work.id}"
        failed, cancelled, expired = BATCH_STATE_FAILED, BATCH_STATE_CANCELLED, BATCH_STATE_EXPIRED
    else:
        name = f"job {work.id}"
        failed, cancelled, expired = JOB_STATE_FAILED, JOB_STATE_CANCELLED, JOB_STATE_EXPIRED
    if work.state == failed:
        raise error_of_status(work.error)
    if work.state == cancelled:
        raise RequestCancelledError(f"{name} was cancelled")
    if work.state == expired:
        raise RequestExpiredError(f"{name} had not ended when its time limit ran out")


class Watch(Generic[Version]):
    """A watch over something with versions, such as a job, until it has ended."""

    def __init__(self, name: str, since_version: int | None, budget: RetryBudget) -> None:
        """Has received nothing yet.

        Args:
            name: what is watched, for errors.
            since_version: yields only later versions; None for the present one, and then every change.
            budget: how long to retry when the stream breaks.
        """
        self._name = name
        self._since = since_version
        self._budget = budget
        self._received = False
        self.done = False

    def note_connection(self) -> int | None:
        """Prepares for a new connection, and returns the version from which on to watch."""
        self._received = False
        return self._since

    def note_message(self) -> None:
        """Notes that the server is alive."""
        self._received = True
        self._budget.renew()

    def take_version(self, version: Version, *, ended: bool) -> Version | None:
        """Returns a version if it is new, or the last one."""
        self.done = ended
        if self._since is not None and version.version <= self._since and not ended:
            return None
        self._since = max(version.version, self._since or 0)
        return version

    def pause(self, error: SmaltiError | None) -> float:
        """See `ResumableStream`."""
        if error is None:
            error = UnavailableError(f"the server ended the watch of {self._name} too early")
        elif isinstance(error, RequestExpiredError):
            # The watch was open for `WATCH_SECONDS`; it is renewed at once if the server was alive meanwhile.
            if self._received:
                return 0.0
            error = UnavailableError(f"the server sends nothing about {self._name}")
        return self._budget.pause(error)


class JobWatch(Watch[Job]):
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
        super().__init__(f"job {job_id}", since_version, budget)
        self._job_id = job_id
        self._include_tokens = include_tokens

    def request(self) -> WatchJobRequest:  # noqa: D102
        return WatchJobRequest(
            job_id=self._job_id,
            since_version=self.note_connection(),
            include_rows=self._include_tokens,
            include_previews=self._include_tokens,
        )

    def take(self, response: WatchJobResponse) -> Event | None:
        """Returns the event of a message; None for a version that is not new, or an event that is not known here."""
        self.note_message()
        match response.WhichOneof("event"):
            case "job":
                return self.take_version(response.job, ended=has_ended(response.job))
            case "rows":
                return response.rows
            case "preview":
                return response.preview
        return None


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
