"""What both clients know of their server."""

from smalti.client.asking import server_address
from smalti.client.following import RetryBudget
from smalti.errors import SmaltiError, UnavailableError
from smalti.v1.job_pb2 import JOB_STATE_CANCELLED, Job

CALL_SECONDS = 30.0
PATIENCE = 60.0
CANCEL_SECONDS = 5.0
"""How long a client that is interrupted takes to cancel its job."""


class ClientBase:
    """The server's address, and how long to wait for it."""

    def __init__(
        self, server: str | None = None, *, call_seconds: float = CALL_SECONDS, patience: float = PATIENCE
    ) -> None:
        """Connects when it is first used.

        Args:
            server: the gateway, as host:port; None for that of the settings, or else of `smalti up`.
            call_seconds: how long a call may take, each time it is tried. Streams have their own measure.
            patience: how many seconds a server that has answered before may not answer before it is given up. One
                that never has is given up after the few tries that gRPC makes: the address may be wrong.

        Raises:
            InvalidInputError: the address or a setting cannot be used; names the argument or the variable.
        """
        self.server = server_address(server)
        self._call_seconds = call_seconds
        self._patience_seconds = patience
        self._reached = False

    def _patience(self, room: float) -> RetryBudget:
        """Returns the patience of a call; see `RetryBudget`."""
        return RetryBudget(self._patience_seconds, room=room, reached=self._reached)

    def _flow_patience(self) -> RetryBudget:
        """Returns the patience of a stream. It is about a job that has its place, so a full server is waited for."""
        return self._patience(room=self._patience_seconds)

    def _note(self, error: SmaltiError | None) -> None:
        """Takes down that a call was answered, with an error or without one."""
        if not isinstance(error, UnavailableError):
            self._reached = True


def abandoned_note(job_id: str, cancelled: Job | SmaltiError) -> str:
    """Says what has become of a job for which nobody waits any more, after an attempt to cancel it."""
    if isinstance(cancelled, SmaltiError):
        return f"job {job_id} could not be cancelled and goes on: {cancelled}"
    if cancelled.state == JOB_STATE_CANCELLED:
        return f"job {job_id} is cancelled"
    return f"job {job_id} had ended already"
