"""Celery's worker in a thread of a service's process.

Celery's reconnection, prefetch, late acknowledgement and event loop are used as they are. Two parts are replaced: the
pool, which takes messages by priority and can be abandoned while work runs, and the handling of messages that Celery
cannot read, which it would drop.
"""

import errno
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar, Final

from celery import Celery
from celery.bootsteps import RUN
from celery.exceptions import CPendingDeprecationWarning
from celery.worker import WorkController, state
from celery.worker.consumer import Consumer
from celery.worker.loops import asynloop
from kombu.connection import Connection
from kombu.message import Message as KombuMessage

from smalti.errors import SmaltiError
from smalti.queue.broker.order import is_batch_queue
from smalti.queue.broker.pool import SHARD_HEADER, PriorityPool
from smalti.queue.broker.transport import RAW, RawMessage, describe
from smalti.queue.dead.instructions import find_instruction

logger = logging.getLogger(__name__)

FIRST_WAIT_SECONDS: Final = 0.25
MAX_WAIT_SECONDS: Final = 5.0
"""Longest wait before the worker connects again to a broker that answers with an error."""
STEADY_SECONDS: Final = 30.0
"""Time after which a connection has held: the next one that is lost is renewed at once."""

DeadLetter = Callable[[KombuMessage, str], None]
"""Keeps a message that Celery cannot read; called with the message and the reason."""


class DeadLetteringConsumer(Consumer):
    """Celery's consumer without communication between workers; it keeps messages that Celery would drop."""

    dead_letter: DeadLetter | None = None
    """Set before the worker starts."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Takes the arguments of Celery's consumers."""
        self.unacknowledged: set[Any] = set()
        """The delivery tags of this connection whose messages are not acknowledged yet."""
        self.shards: set[Any] = set()
        """Those of messages about shards."""
        self._short_lived = 0
        """Connections in a row that did not hold."""
        self._connected_at = 0.0
        super().__init__(*arguments, **options)

    class Blueprint(Consumer.Blueprint):
        """The parts of the consumer. Delayed delivery is left out: it declares dozens of exchanges and queues."""

        default_steps: ClassVar[list[str]] = [
            "celery.worker.consumer.connection:Connection",
            "celery.worker.consumer.tasks:Tasks",
            "celery.worker.consumer.consumer:Evloop",
        ]

    def start(self) -> None:
        """Consumes until the worker stops. No error ends it: without a consumer, the whole process would end."""
        while True:
            try:
                return super().start()
            except Exception as error:
                logger.exception("consuming failed, and is begun again")
                # What Celery does after an error that it knows.
                if self.connection:
                    self.on_connection_error_after_connected(error)
                else:
                    self.on_connection_error_before_connected(error)
                self.on_close()
                self.blueprint.restart(self)

    @staticmethod
    def loop(consumer: Consumer, *arguments: Any) -> None:
        """Runs the event loop; unreadable input costs the connection, but not the worker."""
        try:
            asynloop(consumer, *arguments)
        except consumer.connection_errors as error:
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                # At this error Celery would end.
                raise ConnectionError(f"this process may not open more files: {error}") from error
            raise
        except Exception as error:
            logger.exception("the broker delivered something that is not a message; it is lost")
            raise ConnectionError("the broker delivered something that is not a message") from error

    def call_soon_ack(self, p: Callable[..., None], *args: Any, **kwargs: Any) -> Any:
        """Acknowledges or rejects in the worker's thread."""
        return super().call_soon_ack(self._acknowledge, p, *args, **kwargs)

    def _acknowledge(
        self, call: Any, log: logging.Logger, errors: tuple[type[Exception], ...], *options: Any
    ) -> None:
        """Calls a method of a message, which swallows the given errors.

        Celery ignores an acknowledgement that fails. With Valkey that would lose its prefetch slot, and a worker
        without free slots does not listen, so it never learns that its connection is dead. Here the error is raised
        and makes the worker reconnect. Only a message of an earlier connection cannot and need not be acknowledged.
        """
        consumer, message = self.task_consumer, call.__self__
        current = consumer is not None and message.channel is consumer.channel
        call(log, () if current and self.blueprint.state == RUN else errors, *options)
        if current:
            self._forget(message)

    def cancel_task_queue(self, queue: str) -> None:
        """Stops consuming from a queue; without a connection, the next one does so."""
        if self.task_consumer is None:
            self.app.amqp.queues.deselect(queue)
        else:
            super().cancel_task_queue(queue)

    def add_task_queue(self, queue: str, *arguments: Any, **options: Any) -> None:
        """Consumes from a queue; without a connection, the next one does so."""
        if self.task_consumer is None:
            self.app.amqp.queues.select_add(self.app.amqp.queues[queue])
        else:
            super().add_task_queue(queue, *arguments, **options)

    def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[KombuMessage], None]:
        """Returns the callback for a message, which never ends the event loop."""
        handle = super().create_task_handler(*arguments, **options)

        def on_message(message: KombuMessage) -> None:
            self.unacknowledged.add(message.delivery_tag)
            if (message.headers or {}).get(SHARD_HEADER):
                self.shards.add(message.delivery_tag)
            try:
                why = None
                with suppress(Exception):  # What cannot be decoded goes to Celery, which reports it below.
                    why = find_instruction(message)
                if why is None:
                    if isinstance(message.headers, dict):
                        # Celery passes the headers on to the task, and nothing else that could hold it.
                        message.headers[RAW] = RawMessage.of(message)
                    handle(message)
                else:
                    self._keep(message, why)
            except self.connection_errors:
                raise
            except Exception as error:
                self._keep(message, f"{type(error).__name__}: {error}")

        return on_message

    def on_unknown_message(self, body: Any, message: KombuMessage) -> None:
        """Keeps a message that is not a task."""
        self._keep(message, "the message is not a Celery task")

    def on_unknown_task(self, body: Any, message: KombuMessage, exc: BaseException) -> None:
        """Keeps a message of another task."""
        self._keep(message, f"this queue does not accept the task {exc}")

    def on_invalid_task(self, body: Any, message: KombuMessage, exc: BaseException) -> None:
        """Keeps a malformed message, or one of a content type that is not accepted, such as an unsigned one."""
        self._keep(message, f"the message is not accepted: {exc}")

    def on_decode_error(self, message: KombuMessage, exc: BaseException) -> None:
        """Keeps a message that cannot be decoded, or whose signature is not trusted."""
        self._keep(message, f"the message cannot be read: {exc}")

    def ensure_connected(self, connection: Connection) -> Connection:
        """Retries until connected, at most two seconds apart."""

        def failed(error: BaseException, seconds: float) -> None:
            logger.warning("the broker cannot be reached; retrying in %.1f s: %s", seconds, describe(error))

        connection.ensure_connection(
            failed,
            None,
            interval_start=0.2,
            interval_step=0.3,
            interval_max=2.0,
            callback=state.maybe_shutdown,
        )
        self.first_connection_attempt = False
        self._connected_at = time.monotonic()
        return connection

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Gives the connection up; waits if one after the other does not hold."""
        self.unacknowledged.clear()
        self.shards.clear()
        with suppress(CPendingDeprecationWarning):
            super().on_connection_error_after_connected(exc)
        self._wait_after(exc)

    def on_connection_error_before_connected(self, exc: BaseException) -> None:
        """Waits: the broker takes connections, and refuses what is asked first."""
        self._wait_after(exc)

    def _wait_after(self, error: BaseException) -> None:
        """Waits, and each time longer up to a limit, unless the connection before has held for a while."""
        held = time.monotonic() - self._connected_at
        self._short_lived = 0 if held > STEADY_SECONDS else self._short_lived + 1
        if self._short_lived > 1:
            seconds = min(FIRST_WAIT_SECONDS * 2.0 ** min(self._short_lived, 16), MAX_WAIT_SECONDS)
            logger.warning(
                "the broker refuses something; trying again in %.1f s: %s", seconds, describe(error)
            )
            self._wait(seconds)
        # Until the next connection, none holds.
        self._connected_at = time.monotonic()

    def _wait(self, seconds: float) -> None:
        """Waits in the worker's thread, unless the worker stops."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            state.maybe_shutdown()
            time.sleep(min(left, 0.1))

    def _keep(self, message: KombuMessage, why: str) -> None:
        if self.dead_letter is None:
            raise RuntimeError("dead_letter must be set before the worker starts")
        try:
            self.dead_letter(message, why)
        except SmaltiError:
            logger.exception("an unreadable message goes back to its queue")
            message.reject(requeue=True)
        else:
            message.ack()
        self._forget(message)

    def _forget(self, message: KombuMessage) -> None:
        self.unacknowledged.discard(message.delivery_tag)
        self.shards.discard(message.delivery_tag)


class WorkerThread:
    """Celery's worker in a thread. A process can have one at a time: much of Celery's state is global."""

    _taken: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self,
        application: Celery,
        queues: list[str],
        *,
        concurrency: int,
        shards: int,
        dead_letter: DeadLetter,
    ) -> None:
        """Creates the worker; `start` runs it.

        Args:
            application: has the tasks.
            queues: the queues to consume, by priority.
            concurrency: messages that are handled at the same time.
            shards: shards that are handled at the same time, beside these messages.
            dead_letter: keeps messages that Celery cannot read.

        Raises:
            RuntimeError: the process has a worker already.
        """
        if not self._taken.acquire(blocking=False):
            raise RuntimeError("this process has a consumer already; stop it first")
        self._application = application
        self._queues = queues
        # The threads of the pool look up the default application.
        application.set_default()
        self.ready = threading.Event()
        """Set when the worker consumes for the first time."""
        self.ended = threading.Event()
        """Set when the worker has ended, with or without `stop`."""
        self._worker = WorkController(
            app=application,
            queues=queues,
            concurrency=concurrency,
            pool_cls=PriorityPool,
            consumer_cls=DeadLetteringConsumer,
            without_mingle=True,
            without_gossip=True,
            without_heartbeat=True,
            ready_callback=lambda consumer: self.ready.set(),
        )
        self._worker.consumer.dead_letter = dead_letter
        self._worker.pool.limit_shards(shards, lambda then: self._soon(self._adjust, then))
        self._prefetch = self._worker.consumer.initial_prefetch_count
        self._paused = False
        self._consumed = set(queues)
        self._thread = threading.Thread(target=self._run, name="queue-worker", daemon=True)

    @property
    def connected(self) -> bool:
        """Whether the worker believes that it is connected to the broker."""
        return self._thread.is_alive() and self._worker.consumer.connection is not None

    @property
    def unacknowledged(self) -> int:
        """The number of messages that are not acknowledged yet."""
        return len(self._worker.consumer.unacknowledged)

    @property
    def shard_tags(self) -> list[Any]:
        """The delivery tags of shards that are handled."""
        return list(self._worker.consumer.shards)

    def start(self) -> None:
        """Starts the thread without waiting for the broker."""
        self._thread.start()

    def pause(self) -> None:
        """Stops consuming; messages that were received are still handled."""
        self._paused = True
        self._soon(self._adjust, _nothing)

    def resume(self) -> None:
        """Consumes again."""
        self._paused = False
        self._soon(self._adjust, _nothing)

    def handle_waiting(self) -> None:
        """Handles in this thread the messages that wait for a thread of the pool."""
        while self._worker.pool.run_next():
            pass

    def flush(self, timeout: float) -> None:
        """Waits until pending acknowledgements were sent, for at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        # The hub calls a batch in any order; two rounds make sure that everything before is done.
        for _ in range(2):
            done = threading.Event()
            self._soon(done.set)
            done.wait(max(0.0, deadline - time.monotonic()))

    def stop(self, timeout: float) -> bool:
        """Ends the worker even if threads are busy; unacknowledged messages go back to the broker.

        Returns:
            False when it has not ended after `timeout` seconds.
        """
        if not self._thread.is_alive():
            return True
        state.should_stop = 0
        self._soon(lambda: None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _adjust(self, then: Callable[[], None]) -> None:
        """Consumes from the queues from which messages can be handled, and no others; in the worker's thread."""
        pool, consumer = self._worker.pool, self._worker.consumer
        for name in self._queues:
            wanted = not self._paused and not (pool.is_full and is_batch_queue(name))
            if wanted and name not in self._consumed:
                consumer.add_task_queue(name)
                self._consumed.add(name)
            elif not wanted and name in self._consumed:
                consumer.cancel_task_queue(name)
                self._consumed.remove(name)
        # A shard that is handled takes no place that another message could have; for a new connection, too.
        consumer.initial_prefetch_count = self._prefetch + pool.shards
        if consumer.qos is not None:
            consumer.qos.value = consumer.initial_prefetch_count
        then()

    def _soon(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Schedules a call in the worker's thread, between two messages."""
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


def _nothing() -> None:
    """Does nothing."""
