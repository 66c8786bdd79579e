"""Consumes the messages of a stage and passes them to a handler."""

import logging
import time
from types import TracebackType
from typing import Any, Self

from celery import Celery
from celery.exceptions import Reject
from kombu.message import Message as KombuMessage

from smalti.errors import MalformedMessageError
from smalti.messages import RouteKey, Stage, dead_queue_name
from smalti.queue.application import celery_application
from smalti.queue.broker.pool import EXCESS
from smalti.queue.broker.queues import stage_queues, task_name, uses_rabbitmq
from smalti.queue.broker.transport import RAW, RawMessage
from smalti.queue.crashes.isolation import IsolationGate
from smalti.queue.crashes.journal import WorkJournal
from smalti.queue.dead.headers import UNREADABLE, with_death
from smalti.queue.delivery import DeliveryHandler, UnacknowledgedError
from smalti.queue.held.returning import ReturningThread
from smalti.queue.outcomes import DeliveryObserver, Handler, HelloHandler, ReceivedMessage
from smalti.queue.publisher import REDELIVERIES_HEADER, SENT_HEADER, BrokerPublisher
from smalti.queue.settings import BrokerSettings, broker_settings
from smalti.queue.signing import SIGNER, check_seal
from smalti.queue.worker import WorkerThread
from smalti.storage import JobKeys, ObjectStore, digest

logger = logging.getLogger(__name__)

DEFAULT_SHARDS = 2
"""Shards that a worker handles at the same time: while one ends, the other keeps the engine busy."""
CLOSE_SECONDS = 5.0
"""Time that closing the connection may take once the work is done."""
RETURN_SECONDS = 30.0
"""Time in which a worker tries to return all other messages before it runs a suspect one."""


class Consumer:
    """Consumes the messages of a stage in the background; made by `consume`."""

    def __init__(
        self,
        stage: Stage,
        handler: Handler,
        *,
        concurrency: int,
        shards: int,
        settings: BrokerSettings,
        publisher: BrokerPublisher,
        store: ObjectStore | None,
        observer: DeliveryObserver,
        key: RouteKey | None,
        hear: HelloHandler,
    ) -> None:
        """Consumes nothing until `start`; see `consume` for the arguments."""
        self._settings = settings
        self._publisher = publisher
        self._stage = stage
        self._journal = (
            None if store is None else WorkJournal(settings.journal, _scope(stage, settings, store))
        )
        self._deliveries = DeliveryHandler(
            stage,
            handler,
            publisher,
            settings,
            store=store,
            observer=observer,
            gate=IsolationGate(pause=self._pause, return_others=self._return_others, resume=self._resume),
            journal=self._journal,
            hear=hear,
        )
        queues = stage_queues(stage, key, old=settings.old_queues, work=settings.work)
        application = celery_application(settings, queues)
        self._register(application)
        self._worker = WorkerThread(
            application, queues, concurrency=concurrency, shards=shards, dead_letter=self._keep
        )
        # RabbitMQ returns by itself what was held back.
        self._returning = (
            None
            if uses_rabbitmq(settings)
            else ReturningThread(settings, queues, lambda: self._worker.shard_tags)
        )

    @property
    def alive(self) -> bool:
        """Whether messages are consumed, now or when the broker is back; if not, the process should end."""
        return not self._worker.ended.is_set()

    @property
    def connected(self) -> bool:
        """Whether the worker believes that it is connected to the broker."""
        return self._worker.connected

    @property
    def running(self) -> int:
        """The number of handlers that run."""
        return self._deliveries.gate.running

    def start(self) -> Self:
        """Starts consuming in the background, as soon as the broker is there."""
        self._deliveries.crashes.learn()
        self._worker.start()
        if self._returning is not None:
            self._returning.start()
        return self

    def wait_until_ready(self, timeout: float) -> bool:
        """Waits until messages are consumed for the first time; returns False after `timeout` seconds."""
        return self._worker.ready.wait(timeout)

    def wait_until_ended(self, timeout: float | None = None) -> bool:
        """Waits until the worker has ended; returns False after `timeout` seconds."""
        return self._worker.ended.wait(timeout)

    def stop(self, grace: float | None = None) -> bool:
        """Stops consuming, lets running handlers finish, and returns the other messages to the queue.

        Args:
            grace: seconds that handlers have; None uses the settings.

        Returns:
            False when a handler still runs. Its message went back to the queue, but its thread cannot be ended and
            keeps the process alive; end the process with `os._exit`.
        """
        grace = self._settings.drain if grace is None else grace
        if self._returning is not None:
            self._returning.stop()
        if not self.alive:
            return self.running == 0
        self._worker.pause()
        self._deliveries.draining.set()
        self._worker.handle_waiting()
        finished = self._deliveries.gate.wait_until_idle(grace)
        # Messages that were about to start meanwhile go back to the queue, which needs no grace.
        self._worker.handle_waiting()
        acknowledged = time.monotonic() + CLOSE_SECONDS
        while finished and self._worker.unacknowledged and time.monotonic() < acknowledged:
            time.sleep(0.005)
        self._worker.flush(CLOSE_SECONDS)
        stopped = self._worker.stop(CLOSE_SECONDS)
        if self._journal is not None:
            self._journal.close()
        return stopped and finished

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _pause(self) -> None:
        """Stops consuming; returns when the broker knows."""
        self._worker.pause()
        self._worker.flush(RETURN_SECONDS)

    def _return_others(self) -> None:
        """Returns all messages but this thread's, and waits until the broker knows."""
        deadline = time.monotonic() + RETURN_SECONDS
        while time.monotonic() < deadline and self._worker.unacknowledged > 1:
            self._worker.handle_waiting()
            time.sleep(0.01)

    def _resume(self) -> None:
        if not self._deliveries.draining.is_set():
            self._worker.resume()

    def _register(self, application: Celery) -> None:
        """Registers the Celery task of the stage."""
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
            queue = request.delivery_info["routing_key"]
            count, sent = getattr(request, REDELIVERIES_HEADER, 0), getattr(request, SENT_HEADER, None)
            signer, problem = None, ""
            if self._settings.signed:
                signer = str(options.get(SIGNER))
                try:
                    seal = check_seal(options, queue)
                    count, sent = seal.redeliveries, seal.sent
                except MalformedMessageError as error:
                    problem = str(error)
            received = ReceivedMessage(
                text=arguments[0]
                if len(arguments) == 1 and isinstance(arguments[0], str)
                else repr(arguments),
                queue=queue,
                raw=getattr(request, RAW),
                redelivered=bool(request.delivery_info["redelivered"]),
                is_excess=bool(getattr(request, EXCESS, False)),
                redeliveries=count if isinstance(count, int) and count >= 0 else 0,
                sent=sent if isinstance(sent, float) else None,
                signer=signer,
                problem=problem,
            )
            try:
                deliveries.handle(received)
            except UnacknowledgedError:
                raise Reject("not acknowledged", requeue=True) from None

    def _keep(self, message: KombuMessage, why: str) -> None:
        """Puts a message that Celery cannot read into the dead-letter queue, unchanged."""
        logger.error("a message of %s goes to the dead-letter queue: %s", self._stage, why)
        raw = RawMessage.of(message)
        # Where it came from is in the headers of none that is no task.
        origin = str((message.delivery_info or {}).get("routing_key", ""))
        headers = with_death(raw.headers, why=why, kind=UNREADABLE, origin=origin)
        self._publisher.publish_received(dead_queue_name(self._stage), raw, headers)


def _scope(stage: Stage, settings: BrokerSettings, store: ObjectStore) -> str:
    """Returns a name of the queue and the store, which only workers of the same system share."""
    where = store.presigned_url(JobKeys("j").folder + "any", seconds=1).partition("?")[0]
    scope = digest(f"{settings.url.get_secret_value()} {where}".encode())
    return f"{stage}-{scope[:16]}"


def consume(
    stage: Stage,
    handler: Handler,
    *,
    concurrency: int,
    shards: int = DEFAULT_SHARDS,
    publisher: BrokerPublisher,
    store: ObjectStore | None = None,
    settings: BrokerSettings | None = None,
    observer: DeliveryObserver = lambda handled: None,
    key: RouteKey | None = None,
    hear: HelloHandler = lambda hello: None,
) -> Consumer:
    """Returns a consumer of a stage's messages. `start` runs it in the background, `stop` drains it.

    A process can have one consumer: Celery's worker, which runs it, keeps global state.

    Args:
        stage: the stage whose queues are consumed.
        handler: does the work in one of `concurrency` threads; see `smalti.queue.outcomes.Handler`.
        concurrency: messages that are handled at the same time. A generator needs more than its slots, so that work
            waits for the generator and not the generator for work.
        shards: shards of batches that are handled at the same time, in threads of their own.
        publisher: sends the messages that follow from the work.
        store: keeps the crash counts by which poison messages are found. None is for messages that cannot crash a
            worker, such as events: they are never given up as poison.
        settings: None reads them from the environment.
        observer: called with each handled delivery, from the thread that handled it.
        key: the key of the queues that are consumed, beside those without a key; None for these alone.
        hear: told what workers say of themselves; for the gateway, whose stage is that of the events.

    Raises:
        InvalidInputError: a setting is invalid.
        RuntimeError: the process has a consumer already.
    """
    return Consumer(
        stage,
        handler,
        concurrency=concurrency,
        shards=shards,
        settings=settings or broker_settings(),
        publisher=publisher,
        store=store,
        observer=observer,
        key=key,
        hear=hear,
    )
