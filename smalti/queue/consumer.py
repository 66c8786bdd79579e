"""Takes a stage's messages and hands them to a handler."""

import logging
import time
from types import TracebackType
from typing import Any, Self

from celery import Celery
from celery.exceptions import Reject
from kombu.message import Message as KombuMessage

from smalti.messages import Stage, dead_queue_name
from smalti.queue.application import celery_application, stage_queues, task_name
from smalti.queue.delivery import (
    WHY_DEAD,
    DeliveryHandler,
    Handler,
    NotAcknowledgedError,
    Observer,
    Received,
)
from smalti.queue.gate import Gate
from smalti.queue.publisher import REDELIVERIES, SENT, BrokerPublisher
from smalti.queue.settings import BrokerSettings, broker_settings
from smalti.queue.worker import WorkerThread
from smalti.storage import ObjectStore

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 5.0
"""How long the connection may take to close when the work is done."""
EMPTY_SECONDS = 30.0
"""How long a worker tries to give everything back before it runs suspect work."""


class Consumer:
    """A stage's messages on their way to a handler; `consume` makes it."""

    def __init__(
        self,
        stage: Stage,
        handler: Handler,
        *,
        concurrency: int,
        settings: BrokerSettings,
        publisher: BrokerPublisher,
        store: ObjectStore | None,
        observer: Observer,
    ) -> None:
        """Takes no message yet; see `consume` for the arguments."""
        self._settings = settings
        self._publisher = publisher
        self._stage = stage
        self._deliveries = DeliveryHandler(
            stage,
            handler,
            publisher,
            settings,
            store=store,
            observer=observer,
            gate=Gate(self._take_nothing, self._empty_hands, self._take_again),
        )
        application = celery_application(settings)
        self._register(application)
        self._worker = WorkerThread(
            application, stage_queues(stage), concurrency=concurrency, dead_letter=self._keep
        )

    @property
    def alive(self) -> bool:
        """Whether messages are taken, or will be when the broker is back; when not, the process should end."""
        return not self._worker.ended.is_set()

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the broker, as far as is known."""
        return self._worker.connected

    @property
    def running(self) -> int:
        """How many handlers run."""
        return self._deliveries.gate.running

    def start(self) -> Self:
        """Begins to take messages, in the background, as soon as there is a broker."""
        self._worker.start()
        return self

    def wait_until_ready(self, timeout: float) -> bool:
        """Waits until messages are taken for the first time; returns False when the seconds are over before."""
        return self._worker.ready.wait(timeout)

    def wait_until_ended(self, timeout: float | None = None) -> bool:
        """Waits until no messages are taken any more; returns False when the seconds are over before."""
        return self._worker.ended.wait(timeout)

    def stop(self, grace: float | None = None) -> bool:
        """Takes no more messages, lets what runs finish, and gives back what does not.

        Args:
            grace: the seconds that handlers have; None is the settings'.

        Returns:
            False when a handler still runs, whose message has gone back to the queue. Its thread cannot be ended, and
            would keep the process: `os._exit` then ends it.
        """
        grace = self._settings.drain if grace is None else grace
        if not self.alive:
            return self.running == 0
        self._worker.pause()
        self._deliveries.draining.set()
        self._worker.handle_waiting()
        finished = self._deliveries.gate.wait_until_idle(grace)
        # Whoever was about to begin meanwhile gives its message back, and needs no grace for it.
        self._worker.handle_waiting()
        acknowledged = time.monotonic() + CLOSE_SECONDS
        while finished and self._worker.in_hand and time.monotonic() < acknowledged:
            time.sleep(0.005)
        self._worker.flush(CLOSE_SECONDS)
        return self._worker.stop(CLOSE_SECONDS) and finished

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _take_nothing(self) -> None:
        """Takes nothing more; returns when the broker knows."""
        self._worker.pause()
        self._worker.flush(EMPTY_SECONDS)

    def _empty_hands(self) -> None:
        """Gives back everything but the message of this thread, and waits until the broker knows."""
        deadline = time.monotonic() + EMPTY_SECONDS
        while time.monotonic() < deadline and self._worker.in_hand > 1:
            self._worker.handle_waiting()
            time.sleep(0.01)

    def _take_again(self) -> None:
        if not self._deliveries.draining.is_set():
            self._worker.resume()

    def _register(self, application: Celery) -> None:
        """Makes the stage's Celery task."""
        deliveries = self._deliveries

        @application.task(
            name=task_name(self._stage),
            bind=True,
            acks_late=True,
            ignore_result=True,
            typing=False,
            shared=False,
            lazy=False,
        )
        def receive(task: Any, *arguments: Any, **options: Any) -> None:
            request = task.request
            count, sent = getattr(request, REDELIVERIES, 0), getattr(request, SENT, None)
            received = Received(
                text=arguments[0]
                if len(arguments) == 1 and isinstance(arguments[0], str)
                else repr(arguments),
                queue=request.delivery_info["routing_key"],
                redelivered=bool(request.delivery_info["redelivered"]),
                redeliveries=count if isinstance(count, int) and count >= 0 else 0,
                sent=sent if isinstance(sent, float) else None,
            )
            try:
                deliveries.handle(received)
            except NotAcknowledgedError:
                raise Reject("not acknowledged", requeue=True) from None

    def _keep(self, message: KombuMessage, why: str) -> None:
        """Puts a message that Celery cannot read into the dead-letter queue, as it is."""
        logger.error("a message of %s goes to the dead-letter queue: %s", self._stage, why)
        body = message.body
        self._publisher.publish_raw(
            dead_queue_name(self._stage),
            body if isinstance(body, bytes) else str(body).encode(),
            message.content_type,
            message.content_encoding,
            {**(message.headers or {}), WHY_DEAD: why[:500]},
        )


def consume(
    stage: Stage,
    handler: Handler,
    *,
    concurrency: int,
    publisher: BrokerPublisher,
    store: ObjectStore | None = None,
    settings: BrokerSettings | None = None,
    observer: Observer = lambda handled: None,
) -> Consumer:
    """Makes what takes a stage's messages; its `start` begins, in the background, and its `stop` drains.

    A process takes the messages of one stage: Celery's worker, which does it, cannot be had twice.

    Args:
        stage: whose messages are taken.
        handler: does the work, in one of `concurrency` threads; see `smalti.queue.delivery.Handler`.
        concurrency: how many messages are taken at the same time. A generator needs its slots and some more, so that
            work waits for it and not it for work.
        publisher: sends what follows from the work.
        store: remembers the work that workers have died of, so that it is given up. None is for messages that cannot
            kill, as events; then nothing is given up for that.
        settings: None reads them from the environment.
        observer: told what became of each delivery, for metrics; called by the handlers' threads.

    Raises:
        InvalidInputError: a setting cannot be used.
        RuntimeError: the process takes messages already.
    """
    return Consumer(
        stage,
        handler,
        concurrency=concurrency,
        settings=settings or broker_settings(),
        publisher=publisher,
        store=store,
        observer=observer,
    )
