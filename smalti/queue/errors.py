"""What a handler raises to say that its work is not done."""

from smalti.errors import SmaltiError
from smalti.messages import FailureReason


class HandlerError(SmaltiError):
    """What a handler raises to say that its work is not done."""


class RetryError(HandlerError):
    """A passing reason; the work is tried again after a while, as long as it has attempts left."""

    def __init__(self, problem: str, delay: float | None = None) -> None:
        """Says why.

        Args:
            problem: one line.
            delay: the seconds to wait; None leaves it to the settings.
        """
        super().__init__(problem)
        self.delay = delay


class PermanentError(HandlerError):
    """Trying again is of no use; the gateway is told."""

    def __init__(self, reason: FailureReason, problem: str) -> None:
        """Says why: the reason for programs, and one line for the user."""
        super().__init__(problem)
        self.reason = reason


class GiveBackError(HandlerError):
    """The worker stops; the message goes back to its queue, and that does not count as an attempt."""
