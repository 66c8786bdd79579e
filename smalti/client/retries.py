"""Retries of calls to a server that does not answer, and streams that resume after they break."""

import random
import time
from typing import Final, Protocol, TypeVar

from smalti.errors import OverloadedError, RequestCancelledError, SmaltiError, UnavailableError

FIRST_PAUSE_SECONDS: Final = 0.25
MAX_PAUSE_SECONDS: Final = 5.0


class RetryBudget:
    """Decides whether a failed call is retried, and after which pause."""

    def __init__(self, seconds: float, *, full_seconds: float, reached: bool) -> None:
        """Starts the clock.

        Args:
            seconds: how long a server that has answered before may be UNAVAILABLE.
            full_seconds: how long it may be full (RESOURCE_EXHAUSTED).
            reached: whether the server has ever answered. One that has not is not retried: its address may be wrong.
        """
        self._seconds = seconds
        self._full_seconds = full_seconds
        self._reached = reached
        self._since = time.monotonic()
        self._pauses = 0

    def renew(self) -> None:
        """Restarts the clock, because the server has answered."""
        self._reached = True
        self._since = time.monotonic()
        self._pauses = 0

    def pause(self, error: SmaltiError) -> float:
        """Returns the pause before the next try, in seconds; raises the error if there is to be no other try."""
        # A client does not ask about calls that it has cancelled itself: this one was cancelled by a server that ends.
        if isinstance(error, UnavailableError | RequestCancelledError):
            limit = self._seconds if self._reached else 0.0
        elif isinstance(error, OverloadedError):
            limit = self._full_seconds
        else:
            raise error
        pause = min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**self._pauses) * random.uniform(0.75, 1.25)
        pause = max(pause, getattr(error, "retry_after", None) or 0.0)
        if time.monotonic() + pause - self._since > limit:
            raise error
        self._pauses += 1
        return pause


RequestKind = TypeVar("RequestKind", covariant=True)
ResponseKind = TypeVar("ResponseKind", contravariant=True)
Item = TypeVar("Item", covariant=True)


class ResumableStream(Protocol[RequestKind, ResponseKind, Item]):
    """A stream of items that resumes where it was when the connection breaks."""

    @property
    def done(self) -> bool:
        """Whether every item has arrived."""

    def request(self) -> RequestKind:
        """Returns the request for the items that are missing, and prepares for a new connection."""

    def take(self, response: ResponseKind) -> Item | None:
        """Takes a message, and returns the item that it completes, if any."""

    def pause(self, error: SmaltiError | None) -> float:
        """Returns the pause before the next connection, in seconds; raises the error if there is to be none.

        Args:
            error: why the connection broke; None if the server ended the stream too early.
        """
