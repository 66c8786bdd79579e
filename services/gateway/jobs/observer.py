"""Notifications of changes of jobs: for the dispatcher, the watchers, and the metrics."""

from dataclasses import dataclass

from smalti.services.gateway.database.tables import JobState


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """The end of a job."""

    job_id: str
    state: JobState
    reason: str
    """`ErrorInfo.reason` of a failed job; empty otherwise."""
    seconds: float
    """Time from its acceptance to its end."""
    was_running: bool
    """Whether a stage had begun to work on it."""


class JobObserver:
    """Receives notifications from any thread, after the change is committed. Methods must not block.

    The methods do nothing; a subclass overrides those it needs.
    """

    def created(self, job_id: str) -> None:
        """A job was accepted, so there are chunks to send."""

    def chosen(self, job_id: str) -> None:
        """The pictures of a job are chosen, so there are chunks of them to refine."""

    def changed(self, job_id: str) -> None:
        """A job has a new version."""

    def rows_began(self, seconds: float) -> None:
        """The first rows of a job are stored, this long after its acceptance."""

    def ended(self, outcome: JobOutcome) -> None:
        """A job has ended, so there is room for others, and there are tasks in the object store."""

    def deleted(self, job_id: str) -> None:
        """A user has deleted a job, so there are tasks in the object store."""

    def lost(self, chunks: int) -> None:
        """The leases of this many chunks have expired; the chunks are sent again."""

    def recounted(self, tenants: int) -> None:
        """The counters of this many tenants differed from their jobs, and are corrected."""


class JobEvents(JobObserver):
    """Passes every notification to its subscribers, in the order of their subscription."""

    def __init__(self) -> None:
        self._observers: list[JobObserver] = []

    def subscribe(self, observer: JobObserver) -> None:
        """Adds an observer. Call it before the gateway starts."""
        self._observers.append(observer)

    def created(self, job_id: str) -> None:  # noqa: D102
        for observer in self._observers:
            observer.created(job_id)

    def chosen(self, job_id: str) -> None:  # noqa: D102
        for observer in self._observers:
            observer.chosen(job_id)

    def changed(self, job_id: str) -> None:  # noqa: D102
        for observer in self._observers:
            observer.changed(job_id)

    def rows_began(self, seconds: float) -> None:  # noqa: D102
        for observer in self._observers:
            observer.rows_began(seconds)

    def ended(self, outcome: JobOutcome) -> None:  # noqa: D102
        for observer in self._observers:
            observer.ended(outcome)

    def deleted(self, job_id: str) -> None:  # noqa: D102
        for observer in self._observers:
            observer.deleted(job_id)

    def lost(self, chunks: int) -> None:  # noqa: D102
        for observer in self._observers:
            observer.lost(chunks)

    def recounted(self, tenants: int) -> None:  # noqa: D102
        for observer in self._observers:
            observer.recounted(tenants)
