"""What happens to a message that a worker has taken: to whom it goes, and when it is acknowledged.

A message is acknowledged after what follows from it is with the broker: the next message, the event, a copy for another
attempt, or a copy in the dead-letter queue. Whatever kills the worker on the way, the broker still has the message.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from smalti.errors import (
    BrokerUnavailableError,
    ExpiredMessageError,
    InvalidInputError,
    MessageError,
    UnavailableError,
    UnknownVersionError,
)
from smalti.messages import Event, FailureReason, Message, Stage, StageDone, Work, dead_queue_name, parse
from smalti.queue.errors import GiveBackError, PermanentError, RetryError
from smalti.queue.gate import Gate
from smalti.queue.publisher import REDELIVERIES, BrokerPublisher
from smalti.queue.settings import BrokerSettings
from smalti.queue.suspects import Suspects
from smalti.queue.tracing import handling
from smalti.storage import ObjectStore

logger = logging.getLogger(__name__)

SUSPECT_AFTER: Final = 2
"""DeliveryHandler that were not ended from which on a message runs alone."""
WHY_DEAD = "smalti_why_dead"
"""The header that says why a message is in a dead-letter queue."""


@dataclass(frozen=True)
class Delivery:
    """A message for a handler."""

    message: Message
    draining: threading.Event
    """Set when the worker stops: a handler that will take long then raises `GiveBackError`."""


Handler = Callable[[Delivery], Iterable[Message]]
"""Does the work, makes its result durable, and returns what is to be sent then. It may be called again for work that
was done before. Raises what `HandlerError` has below it to say that the work is not done."""


class Outcome(StrEnum):
    """What became of a delivery; each is counted."""

    DONE = "done"
    RETRIED = "retried"
    FAILED = "failed"
    EXPIRED = "expired"
    DEAD = "dead"
    """Went to the dead-letter queue."""
    DUPLICATE = "duplicate"
    """The same work was running, and its result is this one's."""
    REDELIVERED = "redelivered"
    """A worker died over it, or lost its connection; it was sent again with one more such death on its account."""
    GIVEN_BACK = "given back"
    """It went back to its queue: the worker stops, or another message has to run alone."""
    UNCONFIRMED = "unconfirmed"
    """The broker could not take what follows, or the store did not answer; the message is delivered again."""


@dataclass(frozen=True)
class Completion:
    """What became of a delivery."""

    outcome: Outcome
    reason: FailureReason | None = None
    """Why the work has failed, if it has for good."""
    done: StageDone | None = None
    """What the gateway was told of work that was done."""


@dataclass(frozen=True)
class HandledDelivery:
    """A delivery that has ended."""

    completion: Completion
    message: Message | None
    """None where it could not be read."""
    seconds: float
    """How long it took."""
    waited: float | None
    """The seconds between its sending and its handling, by the clocks of two machines; None where it is not known."""


Observer = Callable[[HandledDelivery], None]
"""Told of each delivery, for metrics; called by the thread that handled it."""


@dataclass(frozen=True)
class Received:
    """What has come from the broker."""

    text: str
    queue: str
    redelivered: bool = False
    """The broker has given it to somebody before."""
    redeliveries: int = 0
    """How often that was counted."""
    sent: float | None = None
    """When it was sent, in seconds since 1970, if that is known."""


class NotAcknowledgedError(Exception):
    """The message stays with the broker, which delivers it again."""


class DeliveryHandler:
    """Handles what a stage receives; many threads may do so at the same time."""

    def __init__(
        self,
        stage: Stage,
        handler: Handler,
        publisher: BrokerPublisher,
        settings: BrokerSettings,
        *,
        store: ObjectStore | None = None,
        observer: Observer = lambda handled: None,
        gate: Gate | None = None,
    ) -> None:
        """Handles nothing yet.

        Args:
            stage: whose messages they are.
            handler: does the work.
            publisher: sends what follows.
            settings: how often and how soon work is tried again.
            store: remembers what workers have died over alone. None is for messages that kill nobody.
            observer: told what became of every delivery.
            gate: knows how to let a message run alone.
        """
        self.gate = gate or Gate()
        self.draining = threading.Event()
        self._stage = stage
        self._handler = handler
        self._publisher = publisher
        self._settings = settings
        self._observer = observer
        self._suspects = None if store is None else Suspects(store)
        self._in_progress: dict[tuple[str, ...], Future[bool]] = {}
        self._lock = threading.Lock()

    def handle(self, received: Received) -> None:
        """Handles one delivery; when it returns, the message may be acknowledged.

        Raises:
            NotAcknowledgedError: it must not be.
        """
        begin, message = time.perf_counter(), None
        waited = None if received.sent is None else max(0.0, time.time() - received.sent)
        completion = Completion(Outcome.UNCONFIRMED)
        with ExitStack() as telling:
            try:
                try:
                    message = self._parse(received)
                    span = telling.enter_context(handling(message, received.queue))
                    completion = self._deliver(received, message)
                    span.set_attribute("smalti.outcome", completion.outcome.value)
                except ExpiredMessageError as error:
                    message, detail = error.message, str(error)
                    completion = self._fail(received, message, FailureReason.EXPIRED, detail, Outcome.EXPIRED)
                except UnknownVersionError as error:
                    completion = self._leave_to_newer(received, error)
                except MessageError as error:
                    completion = self._bury(received, str(error))
            except Exception as error:
                known = isinstance(error, UnavailableError)
                logger.log(
                    logging.WARNING if known else logging.ERROR,
                    "a message of %s stays with the broker: %s",
                    *(self._stage, error),
                    exc_info=None if known else error,
                )
                raise NotAcknowledgedError(str(error)) from error
            finally:
                self._observer(HandledDelivery(completion, message, time.perf_counter() - begin, waited))
                if completion.outcome is Outcome.UNCONFIRMED:
                    self.draining.wait(self._settings.retry_first)  # It comes again at once.

    def _parse(self, received: Received) -> Message:
        message = parse(received.text)
        if message.stage_queue is not self._stage:
            raise MessageError(f"a message for {message.stage_queue} is in the queue of {self._stage}")
        return message

    def _deliver(self, received: Received, message: Message) -> Completion:
        """Decides who does the work: this thread, one that does it already, or a worker to come."""
        if self.draining.is_set():
            return self._give_back(received)
        with self._lock:
            running = self._in_progress.get(message.work)
        if running is not None:
            if running.result():
                return Completion(Outcome.DUPLICATE)
        elif received.redelivered:
            # A copy that knows of one death more, if it was one.
            self._send_again(received, received.redeliveries + 1)
            return Completion(Outcome.REDELIVERED)
        if received.redeliveries < SUSPECT_AFTER:
            with self.gate.shared() as entered:
                return self._run(received, message) if entered else self._give_back(received)
        return self._run_alone(received, message)

    def _run_alone(self, received: Received, message: Message) -> Completion:
        """Does work that may be what its workers die of; it is given up when enough have died over it alone."""
        deaths = self._suspects.deaths(message) if self._suspects else 0
        if deaths >= max(1, self._settings.deliveries - SUSPECT_AFTER):
            detail = f"{deaths} workers that did nothing else ended before it was done"
            completion = self._fail(received, message, FailureReason.POISON, detail, Outcome.DEAD)
            if self._suspects:
                self._suspects.end(message)
            return completion
        with self.gate.alone() as entered:
            if not entered or self.draining.is_set():
                return self._give_back(received)
            logger.warning("workers have ended over %s; it runs alone", message.work)
            if self._suspects:
                self._suspects.begin(message, deaths + 1)
            try:
                return self._run(received, message)
            finally:
                if self._suspects:
                    self._suspects.end(message)

    def _run(self, received: Received, message: Message) -> Completion:
        """Does the work, unless another thread has begun it meanwhile."""
        mine: Future[bool] = Future()
        with self._lock:
            running = self._in_progress.setdefault(message.work, mine)
        if running is not mine:
            return Completion(Outcome.DUPLICATE) if running.result() else self._run(received, message)
        completion = None
        try:
            completion = self._attempt(received, message)
        finally:
            with self._lock:
                del self._in_progress[message.work]
            mine.set_result(completion is not None and completion.outcome is Outcome.DONE)
        return completion

    def _attempt(self, received: Received, message: Message) -> Completion:
        """Calls the handler, and sends what follows from how it ends."""
        done = None
        try:
            for follower in self._handler(Delivery(message, self.draining)):
                self._publisher.publish(follower)
                done = follower if isinstance(follower, StageDone) else done
        except GiveBackError:
            return self._give_back(received)
        except PermanentError as error:
            return self._fail(received, message, error.reason, str(error), Outcome.FAILED)
        except InvalidInputError as error:
            return self._fail(received, message, FailureReason.INVALID, str(error), Outcome.FAILED)
        except BrokerUnavailableError:
            raise
        except (RetryError, UnavailableError) as error:
            delay = error.delay if isinstance(error, RetryError) else error.retry_after
            return self._retry(received, message, str(error), delay)
        except Exception as error:
            logger.exception("the handler of %s failed at %s", self._stage, message.work)
            return self._retry(received, message, f"{type(error).__name__}: {error}", None)
        return Completion(Outcome.DONE, done=done)

    def _retry(self, received: Received, message: Message, problem: str, delay: float | None) -> Completion:
        """Sends a copy for the next attempt after a while; the thread, and so the credit, is held until then.

        That slows down a worker whose work cannot succeed for now, instead of letting it take message after message.
        """
        if message.attempt >= self._settings.attempts:
            detail = f"it failed at attempt {message.attempt}: {problem}"
            return self._fail(received, message, FailureReason.EXHAUSTED, detail, Outcome.DEAD)
        if delay is None:
            longest = self._settings.retry_first * 2.0 ** (message.attempt - 1)
            delay = min(longest, self._settings.retry_max) * random.uniform(0.5, 1.0)
        logger.info("%s is tried again in %.1f s: %s", message.work, delay, problem)
        self.draining.wait(delay)
        self._publisher.publish_text(
            self._stage,
            received.queue,
            message.again().to_json(),
            headers={REDELIVERIES: received.redeliveries},
        )
        return Completion(Outcome.RETRIED)

    def _leave_to_newer(self, received: Received, error: UnknownVersionError) -> Completion:
        """Lets a newer service have the message; when none takes it, it is kept in the dead-letter queue."""
        if received.redeliveries + 1 >= self._settings.deliveries:
            return self._bury(received, str(error))
        self.draining.wait(
            min(self._settings.retry_first * 2.0**received.redeliveries, self._settings.retry_max)
        )
        self._send_again(received, received.redeliveries + 1)
        return Completion(Outcome.RETRIED)

    def _give_back(self, received: Received) -> Completion:
        self._send_again(received, received.redeliveries)
        return Completion(Outcome.GIVEN_BACK)

    def _send_again(self, received: Received, deaths: int) -> None:
        self.gate.wait_until_closed()
        headers = {REDELIVERIES: deaths}
        self._publisher.publish_text(self._stage, received.queue, received.text, headers=headers)

    def _fail(
        self, received: Received, message: Message, reason: FailureReason, detail: str, outcome: Outcome
    ) -> Completion:
        """Tells the gateway that the work has failed; what failed without a known cause is kept as well."""
        if isinstance(message, Work):
            self._publisher.publish(message.failed(reason, detail))
        if outcome is Outcome.DEAD or isinstance(message, Event):
            outcome = self._bury(received, detail).outcome
        return Completion(outcome, reason)

    def _bury(self, received: Received, why: str) -> Completion:
        """Puts the message into the dead-letter queue."""
        logger.error("a message of %s goes to the dead-letter queue: %s", self._stage, why)
        self._publisher.publish_text(
            self._stage,
            dead_queue_name(self._stage),
            received.text,
            headers={REDELIVERIES: received.redeliveries, WHY_DEAD: why[:500]},
        )
        return Completion(Outcome.DEAD)
