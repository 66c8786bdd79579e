"""Who wants to know of changes: the sender of work, and those who watch a job."""

from typing import Protocol


class Notices(Protocol):
    """Told of changes of jobs, by any thread, after they are stored; must not block."""

    def created(self, job_id: str) -> None:
        """A job was accepted: there is work to send."""
        ...

    def changed(self, job_id: str) -> None:
        """A job has another version."""
        ...

    def ended(self, job_id: str) -> None:
        """A job has ended: there is room for others, and something to do in the store."""
        ...
