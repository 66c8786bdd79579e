"""What can go wrong between a service and the broker, and what a handler can say of its work."""

from smalti.errors import SmaltiError, UnavailableError
from smalti.messages import FailureReason


class BrokerUnavailableError(UnavailableError):
    """The broker has not confirmed a message in time. It may have it nevertheless: sending it again is harmless."""


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
