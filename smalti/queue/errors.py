"""The exceptions with which a handler reports that its work is not done."""

from smalti.errors import SmaltiError
from smalti.messages import FailureReason


class HandlerError(SmaltiError):
    """Raised by a handler whose work is not done."""


class RetryError(HandlerError):
    """A transient failure; the work is retried after a delay, while it has attempts left."""

    def __init__(self, problem: str, delay: float | None = None) -> None:
        """Stores the delay.

        Args:
            problem: the reason, in one line.
            delay: seconds until the retry; None uses the settings.
        """
        super().__init__(problem)
        self.delay = delay


class PermanentError(HandlerError):
    """A failure that a retry cannot fix; it is reported to the gateway."""

    def __init__(self, reason: FailureReason, problem: str) -> None:
        """Stores the reason for programs; `problem` is one line for the user."""
        super().__init__(problem)
        self.reason = reason


class GiveBackError(HandlerError):
    """The worker stops. The message goes back to its queue, which does not count as an attempt."""


class HoldBackError(HandlerError):
    """This worker does not serve the message, but another may. It is held back, which does not count as an attempt."""
