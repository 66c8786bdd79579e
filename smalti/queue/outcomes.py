"""A delivery: what the broker has delivered, and its possible ends."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from smalti.messages import FailureReason, Hello, Message, StageDone
from smalti.queue.broker.transport import RawMessage


@dataclass(frozen=True)
class Delivery:
    """A message that is passed to a handler."""

    message: Message
    draining: threading.Event
    """Set when the worker stops: a handler that would take too long then raises `GiveBackError`."""


Handler = Callable[[Delivery], Iterable[Message]]
"""Does the work, makes the result durable, and returns the messages to send. It may be called again for work that is
done already. Raises a subclass of `HandlerError` when the work is not done."""

HelloHandler = Callable[[Hello], None]
"""Is told what workers say of themselves."""


@dataclass(frozen=True)
class ReceivedMessage:
    """A message as the broker delivered it."""

    text: str
    queue: str
    raw: RawMessage
    """What goes to the dead-letter queue if the message is given up."""
    redelivered: bool = False
    """Whether the broker has delivered it before."""
    redeliveries: int = 0
    """Redeliveries counted so far, from its header."""
    is_excess: bool = False
    """Whether it is about a shard, and this worker has as many as it may have."""
    sent: float | None = None
    """Unix time of its sending; None if unknown."""
    signer: str | None = None
    """The service whose key has signed it; None if messages are not signed."""
    problem: str = ""
    """Why its signature does not hold; empty if it does, or if messages are not signed."""


class Outcome(StrEnum):
    """The possible ends of a delivery; each is counted."""

    DONE = "done"
    RETRIED = "retried"
    FAILED = "failed"
    EXPIRED = "expired"
    DEAD = "dead"
    """The message went to the dead-letter queue."""
    DUPLICATE = "duplicate"
    """The same work was running, and its result counts for this delivery too."""
    REDELIVERED = "redelivered"
    """A worker crashed over it, or lost its connection; it was sent again with its count of redeliveries increased."""
    GIVEN_BACK = "given back"
    """It went back to its queue: the worker stops, or another message must run alone."""
    HELD = "held"
    """This worker cannot handle it, and another may; it comes back after a delay."""
    UNCONFIRMED = "unconfirmed"
    """The broker did not accept what follows, or the store did not answer; the message is delivered again."""


@dataclass(frozen=True)
class Completion:
    """The end of a delivery, and its reason."""

    outcome: Outcome
    reason: FailureReason | None = None
    """Why the work failed for good; None when it did not."""
    done: StageDone | None = None
    """The event that was sent to the gateway when the work was done."""
    crashed: bool = False
    """Whether the engine has stopped over it, which ends the process and so counts as a crash."""


@dataclass(frozen=True)
class HandledDelivery:
    """A delivery that has ended, for metrics."""

    completion: Completion
    message: Message | None
    """None if it could not be parsed."""
    seconds: float
    """Duration of the handling."""
    waited: float | None
    """Seconds from sending to handling, by the clocks of two machines; None if unknown."""


UNFINISHED: Final = (
    Outcome.RETRIED,
    Outcome.GIVEN_BACK,
    Outcome.HELD,
    Outcome.REDELIVERED,
    Outcome.UNCONFIRMED,
)
"""Outcomes after which the message, or a copy of it, is delivered again."""

DeliveryObserver = Callable[[HandledDelivery], None]
"""Called with each handled delivery, from the thread that handled it."""
