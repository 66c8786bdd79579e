"""Handles the messages that a worker receives, and decides when they are acknowledged.

A message is acknowledged after the broker has everything that follows from it: the next message, the event, a copy for
another attempt, or a copy in the dead-letter queue. If the worker crashes before, the broker still has the message.
"""

import logging
import random
import threading
import time
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Final

from smalti.disclosure import disclose
from smalti.errors import (
    BrokerUnavailableError,
    EngineFailedError,
    ExpiredMessageError,
    InvalidInputError,
    MessageError,
    RequestFailedError,
    UnavailableError,
    UnknownVersionError,
)
from smalti.messages import (
    HELLO_QUEUE,
    Event,
    FailureReason,
    Message,
    RoutedTask,
    ShardTask,
    Stage,
    StageDone,
    dead_queue_name,
    parse,
    parse_hello,
)
from smalti.queue.crashes.isolation import DrainOrGate, IsolationGate
from smalti.queue.crashes.journal import WorkJournal
from smalti.queue.crashes.learning import CrashLearner
from smalti.queue.crashes.poison import PoisonRecord, PoisonRecords, work_id
from smalti.queue.dead.headers import UNREADABLE, VERSION, with_death, without_death
from smalti.queue.errors import GiveBackError, HoldBackError, PermanentError, RetryError
from smalti.queue.held.holding import Holding, expiry_of, held_queue
from smalti.queue.outcomes import (
    UNFINISHED,
    Completion,
    Delivery,
    DeliveryObserver,
    HandledDelivery,
    Handler,
    HelloHandler,
    Outcome,
    ReceivedMessage,
)
from smalti.queue.publisher import REDELIVERIES_HEADER, BrokerPublisher, HoldingPublisher
from smalti.queue.settings import BrokerSettings
from smalti.queue.signing import check_sender
from smalti.queue.tracing import handling
from smalti.storage import ObjectStore

logger = logging.getLogger(__name__)

ISOLATE_AFTER: Final = 2
"""Deliveries without an end after which a message runs alone, whether or not a crash is known."""
MAX_BLAMED: Final = 3
"""Attempts at a message over which an engine fails, and over no other."""


class UnacknowledgedError(Exception):
    """The message must not be acknowledged; the broker delivers it again."""


class DeliveryHandler:
    """Handles the messages of a stage; thread-safe."""

    def __init__(
        self,
        stage: Stage,
        handler: Handler,
        publisher: BrokerPublisher,
        settings: BrokerSettings,
        *,
        store: ObjectStore | None = None,
        observer: DeliveryObserver = lambda handled: None,
        gate: IsolationGate | None = None,
        journal: WorkJournal | None = None,
        hear: HelloHandler = lambda hello: None,
    ) -> None:
        """Sets up the handler.

        Args:
            stage: the stage whose messages are handled.
            handler: does the work.
            publisher: sends the messages that follow.
            settings: decide how often and how soon work is retried.
            store: keeps the records of crashes; None is for messages that cannot crash a worker.
            observer: called with every handled delivery.
            gate: isolates suspect messages.
            journal: notes what this worker does, and knows what crashed ones did; None without a store.
            hear: told what workers say of themselves.
        """
        self.gate = gate or IsolationGate()
        self.draining = threading.Event()
        self._stage = stage
        self._handler = handler
        self._publisher = HoldingPublisher(publisher, self.draining, settings.retry_first)
        self._settings = settings
        self._observer = observer
        self._poison = None if store is None else PoisonRecords(store, stage)
        self._journal = journal
        self._hear = hear
        self.crashes = CrashLearner(journal, self._poison)
        self._in_progress: dict[tuple[str, ...], Future[bool]] = {}
        self._lock = threading.Lock()

    def handle(self, received: ReceivedMessage) -> None:
        """Handles one delivery; when it returns, the message may be acknowledged.

        Raises:
            UnacknowledgedError: the message must not be acknowledged.
        """
        begin, message = time.perf_counter(), None
        waited = None if received.sent is None else max(0.0, time.time() - received.sent)
        completion = Completion(Outcome.UNCONFIRMED)
        with ExitStack() as telemetry:
            try:
                try:
                    if received.queue == HELLO_QUEUE:
                        completion = self._receive_hello(received)
                        return
                    message = self._parse(received)
                    span = telemetry.enter_context(handling(message, received.queue))
                    completion = self._deliver(received, message)
                    span.set_attribute("smalti.outcome", completion.outcome.value)
                except ExpiredMessageError as error:
                    message, detail = error.message, str(error)
                    completion = self._fail(received, message, FailureReason.EXPIRED, detail, Outcome.EXPIRED)
                except UnknownVersionError as error:
                    completion = self._leave_to_newer(received, error)
                except MessageError as error:
                    completion = self._bury(received, str(error), UNREADABLE)
            except Exception as error:
                known = isinstance(error, UnavailableError)
                logger.log(
                    logging.WARNING if known else logging.ERROR,
                    "a message of %s is left unacknowledged: %s",
                    *(self._stage, error),
                    exc_info=None if known else error,
                )
                raise UnacknowledgedError(str(error)) from error
            finally:
                self._observer(HandledDelivery(completion, message, time.perf_counter() - begin, waited))
                if completion.outcome is Outcome.UNCONFIRMED:
                    self.draining.wait(self._settings.retry_first)  # It is delivered again at once.

    def _parse(self, received: ReceivedMessage) -> Message:
        if received.problem:
            raise MessageError(received.problem)
        try:
            message = parse(received.text)
        except ExpiredMessageError as error:
            check_sender(received.signer, error.message)
            raise
        check_sender(received.signer, message)
        if message.stage_queue is not self._stage:
            raise MessageError(f"a message for {message.stage_queue} is in the queue of {self._stage}")
        return message

    def _receive_hello(self, received: ReceivedMessage) -> Completion:
        """Passes on what a worker says; the next one comes in seconds, so nothing is tried again or kept."""
        try:
            if received.problem:
                raise MessageError(received.problem)
            hello = parse_hello(received.text)
            check_sender(received.signer, hello)
            self._hear(hello)
        except UnknownVersionError:
            return Completion(Outcome.EXPIRED)
        except MessageError as error:
            return self._bury(received, str(error), UNREADABLE)
        except Exception as error:
            logger.warning("what a worker says of itself is lost: %s", disclose(error, during="a hello").text)
            return Completion(Outcome.FAILED)
        return Completion(Outcome.DONE)

    def _deliver(self, received: ReceivedMessage, message: Message) -> Completion:
        """Does the work here, joins a thread that is doing it, or returns it to the queue."""
        if self.draining.is_set() or received.is_excess:
            return self._give_back(received)
        with self._lock:
            running = self._in_progress.get(message.work_key)
        if running is not None:
            if running.result():
                return Completion(Outcome.DUPLICATE)
        elif received.redelivered:
            self.crashes.learn()
            # Send a copy with the count increased: the broker cannot change the header of the original.
            self._send_again(received, received.redeliveries + 1)
            return Completion(Outcome.REDELIVERED)
        record = self._poison_record(received, message)
        if received.redeliveries >= ISOLATE_AFTER or record.suspects(work_id(message)):
            return self._run_alone(received, message, record)
        with self.gate.shared() as entered:
            return self._run_noted(received, message) if entered else self._give_back(received)

    def _poison_record(self, received: ReceivedMessage, message: Message) -> PoisonRecord:
        """Returns what is known of crashes over the job; nothing if the store is away, at which the work fails too."""
        if self._poison is None:
            return PoisonRecord()
        if self.crashes.untold:
            self.crashes.learn()
        try:
            return self._poison.load(message.job)
        except UnavailableError:
            if received.redeliveries >= ISOLATE_AFTER:
                raise
            return PoisonRecord()

    def _run_noted(self, received: ReceivedMessage, message: Message) -> Completion:
        """Runs a message among others, and notes it in the journal meanwhile."""
        if self._journal is None:
            return self._run(received, message)
        completion, work = None, work_id(message)
        self._journal.begin(message.job, work)
        try:
            completion = self._run(received, message)
        finally:
            if completion is not None and completion.crashed:
                self._journal.crash(message.job, work)
            else:
                self._journal.end(message.job, work)
        return completion

    def _run_alone(self, received: ReceivedMessage, message: Message, record: PoisonRecord) -> Completion:
        """Runs a suspect message alone; gives it up when workers crash over its job alone, too."""
        if self._poison is None:
            with self.gate.alone() as entered:
                return self._run(received, message) if entered else self._give_back(received)
        if record.convicts(self._settings.deliveries):
            detail = (
                f"{record.crashes} workers crashed while they worked on it, "
                f"{record.alone} of them on nothing else"
            )
            # The record stays: the gateway may have sent the work once more meanwhile, and ignores what is said under
            # an older lease.
            return self._fail(received, message, FailureReason.POISON, detail, Outcome.DEAD)
        with self.gate.alone() as entered:
            if not entered or self.draining.is_set():
                return self._give_back(received)
            logger.warning("workers have crashed over %s; it runs alone", message.work_key)
            self._poison.begin_alone(message, received.redeliveries + 1)
            completion = None
            try:
                completion = self._run(received, message)
            finally:
                if completion is None or not completion.crashed:
                    ended = completion is not None and completion.outcome not in UNFINISHED
                    self._poison.end_alone(message, cleared=ended)
            return completion

    def _run(self, received: ReceivedMessage, message: Message) -> Completion:
        """Does the work, unless another thread has started it meanwhile."""
        mine: Future[bool] = Future()
        with self._lock:
            running = self._in_progress.setdefault(message.work_key, mine)
        if running is not mine:
            return Completion(Outcome.DUPLICATE) if running.result() else self._run(received, message)
        completion = None
        try:
            completion = self._attempt(received, message)
        finally:
            with self._lock:
                del self._in_progress[message.work_key]
            mine.set_result(completion is not None and completion.outcome is Outcome.DONE)
        return completion

    def _attempt(self, received: ReceivedMessage, message: Message) -> Completion:
        """Calls the handler, and sends the messages that follow from its outcome."""
        done = None
        try:
            # What takes minutes is given back when another message must run alone; this one may do so already.
            gives_way = isinstance(message, ShardTask) and not self.gate.closed
            stopping = DrainOrGate(self.draining, self.gate) if gives_way else self.draining
            for follower in self._handler(Delivery(message, stopping)):
                self._publisher.publish(follower)
                done = follower if isinstance(follower, StageDone) else done
        except GiveBackError:
            return self._give_back(received)
        except HoldBackError as error:
            held = self._hold_back(received, message.late_at, str(error))
            return held or self._fail(received, message, FailureReason.MODEL, str(error), Outcome.FAILED)
        except EngineFailedError as error:
            # Not an attempt: the process ends, and any of the messages that it works on may be the cause.
            logger.warning("the engine has stopped while it worked on %s: %s", message.work_key, error)
            self._send_again(received, received.redeliveries + 1)
            return Completion(Outcome.REDELIVERED, crashed=True)
        except PermanentError as error:
            return self._fail(received, message, error.reason, str(error), Outcome.FAILED)
        except InvalidInputError as error:
            return self._fail(received, message, FailureReason.INVALID, str(error), Outcome.FAILED)
        except BrokerUnavailableError:
            raise
        except (RetryError, UnavailableError) as error:
            if isinstance(error, RetryError):
                return self._retry(received, message, str(error), error.delay)
            return self._retry(received, message, self._disclosed(error, message), error.retry_after)
        except Exception as error:
            # The work itself is to blame, so the gateway must not have it tried as often again.
            limit = MAX_BLAMED if isinstance(error, RequestFailedError) else self._settings.attempts
            problem = self._disclosed(error, message)
            return self._retry(received, message, problem, None, FailureReason.POISON, limit)
        return Completion(Outcome.DONE, done=done)

    def _disclosed(self, error: BaseException, message: Message) -> str:
        """Returns what the gateway, and with it the caller, is told of an error."""
        return disclose(error, during=f"the handler of {self._stage} at {message.work_key}").text

    def _retry(
        self,
        received: ReceivedMessage,
        message: Message,
        problem: str,
        delay: float | None,
        reason: FailureReason = FailureReason.EXHAUSTED,
        limit: int | None = None,
    ) -> Completion:
        """Sends a copy for the next attempt after a delay, during which the thread and its prefetch slot are held.

        This slows down a worker that cannot succeed for now; otherwise it would fail message after message.
        """
        if message.attempt >= min(limit or self._settings.attempts, self._settings.attempts):
            detail = f"failed at attempt {message.attempt}: {problem}"
            return self._fail(received, message, reason, detail, Outcome.DEAD)
        if delay is None:
            max_delay = self._settings.retry_first * 2.0 ** (message.attempt - 1)
            delay = min(max_delay, self._settings.retry_max) * random.uniform(0.5, 1.0)
        logger.info("%s is retried in %.1f s: %s", message.work_key, delay, problem)
        self.draining.wait(delay)
        self._publisher.publish_text(
            self._stage,
            received.queue,
            message.next_attempt().to_json(),
            headers={REDELIVERIES_HEADER: received.redeliveries},
        )
        return Completion(Outcome.RETRIED)

    def _leave_to_newer(self, received: ReceivedMessage, error: UnknownVersionError) -> Completion:
        """Holds the message back for a newer service; once it has expired, it ends in the dead-letter queue."""
        held = self._hold_back(received, expiry_of(received.text), str(error))
        return held or self._bury(received, str(error), VERSION)

    def _hold_back(self, received: ReceivedMessage, expires: float | None, why: str) -> Completion | None:
        """Has the message, as it came, delivered again after a delay; returns None if that was done for long enough."""
        now = time.time()
        holding = Holding.read(received.raw.headers, now)
        left = holding.left(expires, now)
        if left <= 0:
            return None
        delay = holding.delay(self._settings.retry_first, self._settings.retry_max, left)
        logger.info("a message of %s is held back for %.1f s: %s", self._stage, delay, why)
        headers = without_death(received.raw.headers) | holding.next_headers
        self._publisher.publish_received(held_queue(received.queue, delay), received.raw, headers)
        return Completion(Outcome.HELD)

    def _give_back(self, received: ReceivedMessage) -> Completion:
        self._send_again(received, received.redeliveries)
        return Completion(Outcome.GIVEN_BACK)

    def _send_again(self, received: ReceivedMessage, crashes: int) -> None:
        self.gate.wait_until_closed()
        headers = {REDELIVERIES_HEADER: crashes}
        self._publisher.publish_text(self._stage, received.queue, received.text, headers=headers)

    def _fail(
        self,
        received: ReceivedMessage,
        message: Message,
        reason: FailureReason,
        detail: str,
        outcome: Outcome,
    ) -> Completion:
        """Reports the failure to the gateway; keeps the message too if the cause is unknown."""
        if isinstance(message, RoutedTask):
            self._publisher.publish(message.failed(reason, detail))
        if outcome is Outcome.DEAD or isinstance(message, Event):
            outcome = self._bury(received, detail, reason.value).outcome
        return Completion(outcome, reason)

    def _bury(self, received: ReceivedMessage, why: str, kind: str) -> Completion:
        """Moves the message to the dead-letter queue, as it came."""
        logger.error("a message of %s goes to the dead-letter queue: %s", self._stage, why)
        headers = {**received.raw.headers, REDELIVERIES_HEADER: received.redeliveries}
        self._publisher.publish_received(
            dead_queue_name(self._stage),
            received.raw,
            with_death(headers, why=why, kind=kind, origin=received.queue),
        )
        return Completion(Outcome.DEAD)
