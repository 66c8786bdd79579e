"""Who wants to know of changes: the sender of work, those who watch a job, and those who count."""

from dataclasses import dataclass
from typing import Protocol

from smalti.services.gateway.database.tables import State


@dataclass(frozen=True)
class JobEnding:
    """How a job has ended."""

    job_id: str
    state: State
    reason: str
    """The name of the reason for which it failed, `ErrorInfo.reason`; empty otherwise."""
    seconds: float
    """From its acceptance to its end."""
    running: bool
    """Whether work on it had begun."""


class JobObserver(Protocol):
    """Told of changes of jobs, by any thread, after they are stored; must not block."""

    def created(self, job_id: str) -> None:
        """A job was accepted: there is work to send."""
        ...

    def changed(self, job_id: str) -> None:
        """A job has another version."""
        ...

    def ended(self, ending: JobEnding) -> None:
        """A job has ended: there is room for others, and something to do in the store."""
        ...

    def lost(self, chunks: int) -> None:
        """Of so many chunks nothing was heard, so that they are sent again."""
        ...
