"""The shared part of all calls: the address of the server, and how long to wait for it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from smalti.client.requests import key_metadata, server_address, translated_errors
from smalti.client.retries import RetryBudget
from smalti.errors import SmaltiError, UnavailableError
from smalti.rpc.settings import RpcSettings
from smalti.rpc.tls import closed_handshake_remedy
from smalti.v1.job_pb2 import JOB_STATE_CANCELLED, Job

CALL_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 60.0
CANCEL_SECONDS: Final = 5.0
"""Time limit for cancelling the job of an interrupted call."""


class CallsBase:
    """The address of a server, the key to it, and how long to wait for it."""

    def __init__(
        self,
        server: str | None,
        *,
        key: str | None,
        call_seconds: float,
        retry_seconds: float,
        settings: RpcSettings,
    ) -> None:
        """Does not connect yet; the arguments are those of `Client`."""
        self._settings = settings
        self.server = server_address(server)
        """The address of the gateway, as HOST:PORT."""
        self._metadata = key_metadata(key)
        self._call_seconds = call_seconds
        self._retry_seconds = retry_seconds
        self._reached = False

    def attempt(self, method: Callable[..., Any], request: Any, seconds: float | None = None) -> Any:
        """Begins a call, with the key; the request may be a function that returns an iterator of messages."""
        request = request() if callable(request) else request
        return method(request, timeout=seconds or self._call_seconds, metadata=self._metadata)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Does what `translated_errors` does, and adds a remedy if the server may have refused the certificate.

        Raises:
            SmaltiError: the call failed.
        """
        try:
            with translated_errors():
                yield
        except UnavailableError as error:
            remedy = closed_handshake_remedy(str(error), self._settings)
            if self._reached or not remedy:
                raise
            raise UnavailableError(f"{error}; {remedy}", error.retry_after) from error

    def call_budget(self, full_seconds: float) -> RetryBudget:
        """Returns the budget of a call, which may wait this long for a full server."""
        return RetryBudget(self._retry_seconds, full_seconds=full_seconds, reached=self._reached)

    def stream_budget(self) -> RetryBudget:
        """Returns the budget of a stream. Its job is already accepted, so it also waits for a full server."""
        return self.call_budget(self._retry_seconds)

    def note_answer(self, error: SmaltiError | None) -> None:
        """Remembers that the server answered, with this error or without one."""
        if not isinstance(error, UnavailableError):
            self._reached = True


def cancellation_note(job_id: str, result: Job | SmaltiError) -> str:
    """Returns a note on the job of an interrupted call: cancelled, ended, or still running.

    Args:
        job_id: the job.
        result: the answer to the attempt to cancel it.
    """
    if isinstance(result, SmaltiError):
        return f"job {job_id} could not be cancelled and continues: {result}"
    if result.state == JOB_STATE_CANCELLED:
        return f"job {job_id} is cancelled"
    return f"job {job_id} had already ended"
