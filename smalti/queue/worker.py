"""Celery's worker, in a thread of a service's process.

Celery's own parts are kept: the connection that is made anew, the credit, the late acknowledgement, the event loop.
What is replaced here is the pool, which takes messages in the order of their priority and can be left while work runs,
and what happens to a message that Celery cannot read, which Celery would drop.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

from celery import Celery
from celery.bootsteps import RUN
from celery.concurrency.base import apply_target
from celery.concurrency.thread import ApplyResult, TaskPool
from celery.exceptions import CPendingDeprecationWarning
from celery.worker import WorkController, state
from celery.worker.consumer import Consumer
from celery.worker.loops import asynloop
from kombu.connection import Connection
from kombu.message import Message as KombuMessage

from smalti.errors import SmaltiError
from smalti.queue.order import Turns, is_batch_queue

logger = logging.getLogger(__name__)

DeadLetter = Callable[[KombuMessage, str], None]
"""Keeps a message that Celery cannot read; takes the message and the reason."""


class PriorityPool(TaskPool):
    """Celery's pool of threads, in which interactive work does not queue behind batch work."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Takes what Celery gives its pools."""
        super().__init__(*arguments, **options)
        self._waiting: dict[bool, deque[Callable[[], None]]] = {False: deque(), True: deque()}
        self._turns = Turns()
        self._lock = threading.Lock()

    def on_apply(self, target: Any, args: Any = None, kwargs: Any = None, **options: Any) -> ApplyResult:
        """Takes a message; the next thread that is free does the one that is first then."""
        is_batch = is_batch_queue(args[2]["delivery_info"]["routing_key"])
        callbacks = options.get("callback"), options.get("accept_callback")
        with self._lock:
            self._waiting[is_batch].append(lambda: apply_target(target, args, kwargs, *callbacks))
        return ApplyResult(self.executor.submit(self.run_next))

    def run_next(self) -> bool:
        """Does the message whose turn it is; returns False when none waits."""
        with self._lock:
            interactive, batch = self._waiting[False], self._waiting[True]
            if not interactive and not batch:
                return False
            takes_batch = bool(batch) and (not interactive or self._turns.next_is_batch())
            run = (batch if takes_batch else interactive).popleft()
        run()
        return True

    def on_stop(self) -> None:
        """Leaves the threads: what still runs has had its time, and its messages go back to the broker."""
        self.executor.shutdown(wait=False, cancel_futures=True)


class KeepingConsumer(Consumer):
    """Celery's consumer, without the parts that talk to other workers, and which keeps what Celery would drop."""

    dead_letter: DeadLetter | None = None
    """Set before the worker starts."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Takes what Celery gives its consumers."""
        self.in_hand: set[Any] = set()
        """The delivery tags of what this connection has given and the broker does not know the end of."""
        super().__init__(*arguments, **options)

    class Blueprint(Consumer.Blueprint):
        """What the consumer is made of. Delayed delivery is left out: it makes dozens of exchanges and queues."""

        default_steps: ClassVar[list[str]] = [
            "celery.worker.consumer.connection:Connection",
            "celery.worker.consumer.tasks:Tasks",
            "celery.worker.consumer.consumer:Evloop",
        ]

    @staticmethod
    def loop(consumer: Consumer, *arguments: Any) -> None:
        """Runs the event loop; what cannot be read at all costs the connection, and not the worker."""
        try:
            asynloop(consumer, *arguments)
        except consumer.connection_errors:
            raise
        except Exception as error:
            logger.exception("what the broker has handed out is no message, and is lost")
            raise ConnectionError("what the broker has handed out is no message") from error

    def call_soon_ack(self, p: Callable[..., None], *args: Any, **kwargs: Any) -> Any:
        """Acknowledges, or gives back, in the worker's thread."""
        return super().call_soon_ack(self._acknowledge, p, *args, **kwargs)

    def _acknowledge(
        self, call: Any, log: logging.Logger, errors: tuple[type[Exception], ...], *options: Any
    ) -> None:
        """Calls one of a message's methods, which catch the errors that they are given.

        An acknowledgement that fails must not be passed over, as Celery does: with Valkey its credit would be gone,
        and a worker without credit does not listen, and so never hears that its connection is dead. The error makes
        the connection anew. Only a message of an earlier connection cannot be acknowledged any more, and need not be.
        """
        consumer, message = self.task_consumer, call.__self__
        current = consumer is not None and message.channel is consumer.channel
        call(log, () if current and self.blueprint.state == RUN else errors, *options)
        if current:
            self.in_hand.discard(message.delivery_tag)

    def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[KombuMessage], None]:
        """Returns what takes a message; none of them can end the event loop."""
        handle = super().create_task_handler(*arguments, **options)

        def on_message(message: KombuMessage) -> None:
            self.in_hand.add(message.delivery_tag)
            try:
                handle(message)
            except self.connection_errors:
                raise
            except Exception as error:
                self._keep(message, f"{type(error).__name__}: {error}")

        return on_message

    def on_unknown_message(self, body: Any, message: KombuMessage) -> None:
        """Keeps a message that is no task."""
        self._keep(message, "the message is no Celery task")

    def on_unknown_task(self, body: Any, message: KombuMessage, exc: BaseException) -> None:
        """Keeps the message of another task."""
        self._keep(message, f"this queue has no task {exc}")

    def on_invalid_task(self, body: Any, message: KombuMessage, exc: BaseException) -> None:
        """Keeps a message that is not what Celery sends, or is of a kind that is not accepted: not signed."""
        self._keep(message, f"the message is not accepted: {exc}")

    def on_decode_error(self, message: KombuMessage, exc: BaseException) -> None:
        """Keeps a message that cannot be read, or whose signature is not of somebody trusted."""
        self._keep(message, f"the message cannot be read: {exc}")

    def ensure_connected(self, connection: Connection) -> Connection:
        """Connects, for as long as it takes, and soon after the broker is back."""

        def failed(error: BaseException, seconds: float) -> None:
            logger.warning("the broker cannot be reached, the next try is in %.1f s: %s", seconds, error)

        connection.ensure_connection(
            failed,
            None,
            interval_start=0.2,
            interval_step=0.3,
            interval_max=2.0,
            callback=state.maybe_shutdown,
        )
        self.first_connection_attempt = False
        return connection

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Makes the connection anew."""
        self.in_hand.clear()
        with suppress(CPendingDeprecationWarning):
            super().on_connection_error_after_connected(exc)

    def _keep(self, message: KombuMessage, why: str) -> None:
        if self.dead_letter is None:
            raise RuntimeError("nobody keeps what cannot be read")
        try:
            self.dead_letter(message, why)
        except SmaltiError:
            logger.exception("a message that cannot be read goes back to its queue")
            message.reject_log_error(logger, self.connection_errors, requeue=True)
        else:
            message.ack_log_error(logger, self.connection_errors)
        self.in_hand.discard(message.delivery_tag)


class WorkerThread:
    """Celery's worker in a thread. A process has one at a time: much of Celery's state is the process's."""

    _taken: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self, application: Celery, queues: list[str], *, concurrency: int, dead_letter: DeadLetter
    ) -> None:
        """Makes the worker; `start` starts it.

        Args:
            application: knows the tasks.
            queues: what is taken from, first things first.
            concurrency: how many messages are handled at the same time; no more are taken.
            dead_letter: keeps what Celery cannot read.

        Raises:
            RuntimeError: the process has a worker already.
        """
        if not self._taken.acquire(blocking=False):
            raise RuntimeError("this process takes messages already, and cannot do so twice")
        self._application = application
        self._queues = queues
        # The pool's threads look for their application here.
        application.set_default()
        self.ready = threading.Event()
        """Set when the worker takes messages for the first time."""
        self.ended = threading.Event()
        """Set when the worker has ended, by itself or since it was stopped."""
        self._worker = WorkController(
            app=application,
            queues=queues,
            concurrency=concurrency,
            pool_cls=PriorityPool,
            consumer_cls=KeepingConsumer,
            without_mingle=True,
            without_gossip=True,
            without_heartbeat=True,
            ready_callback=lambda consumer: self.ready.set(),
        )
        self._worker.consumer.dead_letter = dead_letter
        self._thread = threading.Thread(target=self._run, name="queue-worker", daemon=True)

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the broker, as far as is known."""
        return self._thread.is_alive() and self._worker.consumer.connection is not None

    @property
    def in_hand(self) -> int:
        """How many messages were taken whose end the broker does not know."""
        return len(self._worker.consumer.in_hand)

    def start(self) -> None:
        """Starts the thread; does not wait for the broker."""
        self._thread.start()

    def pause(self) -> None:
        """Takes no more messages; what was taken goes on."""
        for name in self._queues:
            self._soon(self._worker.consumer.cancel_task_queue, name)

    def resume(self) -> None:
        """Takes messages again."""
        for name in self._queues:
            self._soon(self._worker.consumer.add_task_queue, name)

    def handle_waiting(self) -> None:
        """Handles in this thread what was taken and has no thread yet."""
        while self._worker.pool.run_next():
            pass

    def flush(self, timeout: float) -> None:
        """Waits until what is to be acknowledged is; `timeout` in seconds."""
        deadline = time.monotonic() + timeout
        # What is called soon is called in no order: what comes after the first call is in the second's batch.
        for _ in range(2):
            done = threading.Event()
            self._soon(done.set)
            done.wait(max(0.0, deadline - time.monotonic()))

    def stop(self, timeout: float) -> bool:
        """Ends the worker, whatever its threads do; what is not acknowledged goes back to the broker.

        Returns:
            False when it has not ended in time, in seconds.
        """
        if not self._thread.is_alive():
            return True
        state.should_stop = 0
        self._soon(lambda: None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _soon(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Calls in the worker's thread, between two messages."""
        hub = self._worker.hub
        if hub is not None:
            hub.call_soon(call, *arguments)

    def _run(self) -> None:
        try:
            self._worker.start()
        finally:
            state.should_stop = None
            self._taken.release()
            self.ended.set()
