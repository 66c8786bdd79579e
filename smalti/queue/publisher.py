"""Publishes messages, and waits until the broker has confirmed them."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, Protocol, runtime_checkable

import amqp
from celery import Celery
from kombu.connection import Connection
from kombu.messaging import Producer
from kombu.utils.uuid import uuid

from smalti.errors import BrokerUnavailableError
from smalti.messages import Hello, Message, Stage
from smalti.queue.application import celery_application
from smalti.queue.broker.pool import SHARD_HEADER
from smalti.queue.broker.queues import declared, task_name, uses_rabbitmq
from smalti.queue.broker.transport import BROKER_ERRORS, RawMessage, describe
from smalti.queue.settings import BrokerSettings, broker_settings
from smalti.queue.signing import seal
from smalti.queue.tracing import sending

REDELIVERIES_HEADER = "smalti_redeliveries"
"""The header that counts crashes of workers over a message, and failed attempts to read it."""
SENT_HEADER = "smalti_sent"
"""The header with the Unix time at which a message was sent."""

SENDERS = 8
"""Number of messages that are sent at the same time."""
MAX_DECLARATIONS = 1024
"""Declarations of queues that are kept, so that they need not be made again."""
MAX_OFFERED = 64
"""Offered messages that may wait to be sent; more are dropped."""

REFUSED_SECONDS = 0.05
"""Delay before a message that RabbitMQ refused is sent again."""

logger = logging.getLogger(__name__)


@runtime_checkable
class Publisher(Protocol):
    """Sends messages; thread-safe. `smalti.testing.publisher.MemoryPublisher` keeps them in memory."""

    def publish(self, message: Message, *, timeout: float | None = None) -> None:
        """Sends a message and waits until the broker has it.

        Args:
            message: goes to the queue of its stage, key and priority.
            timeout: in seconds; None is the default of the settings.

        Raises:
            BrokerUnavailableError: the broker does not answer in time. It may have the message nevertheless.
            OversizedMessageError: the message is too large; nothing was sent.
        """
        ...

    def offer(self, message: Message) -> bool:
        """Sends a message that may be lost, such as progress, without waiting; returns False if it was dropped."""
        ...


class BrokerPublisher:
    """Sends messages over its own connections to the broker; thread-safe.

    A message that was not confirmed may have been sent: sending it again can make a duplicate, which the stages make
    harmless.
    """

    def __init__(self, settings: BrokerSettings | None = None, *, application: Celery | None = None) -> None:
        """Connects when the first message is sent.

        Args:
            settings: None reads them from the environment.
            application: the Celery application; None makes one.
        """
        self.settings = settings or broker_settings()
        self._application = application or celery_application(self.settings)
        self._declared = lru_cache(MAX_DECLARATIONS)(partial(declared, settings=self.settings))
        self._rabbitmq = uses_rabbitmq(self.settings)
        # In threads of their own, so that the timeout holds whatever the client library does with its timeouts.
        self._senders = ThreadPoolExecutor(SENDERS, thread_name_prefix="publisher")
        self._idle: queue.LifoQueue[Connection] = queue.LifoQueue()
        self._lock = threading.Lock()
        self._offered = 0
        self.closed = False
        """Whether it was closed, so that nothing can be sent any more."""

    def publish(self, message: Message | Hello, *, timeout: float | None = None) -> None:
        """Sends a message and waits for the confirmation; see `Publisher`."""
        if isinstance(message, Hello):
            self.publish_text(message.stage_queue, message.queue, message.to_json(), timeout=timeout)
            return
        with sending(message) as traced:
            self.publish_text(traced.stage_queue, traced.queue, traced.to_json(), timeout=timeout)

    def offer(self, message: Message) -> bool:
        """Sends a message in the background; returns False if too many wait already."""
        text = message.to_json()
        with self._lock:
            if self._offered >= MAX_OFFERED:
                return False
            self._offered += 1
        try:
            sent = self._begin(self._send_task, message.stage_queue, message.queue, text, {})
        except BrokerUnavailableError:
            with self._lock:
                self._offered -= 1
            return False
        sent.add_done_callback(self._offer_ended)
        return True

    def publish_text(
        self,
        stage: Stage,
        queue_name: str,
        text: str,
        *,
        headers: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> None:
        """Sends the text of a message to any queue, with further headers; see `publish`."""
        self._wait(self._begin(self._send_task, stage, queue_name, text, headers or {}), timeout)

    def publish_raw(
        self,
        queue_name: str,
        body: bytes,
        content_type: str | None,
        content_encoding: str | None,
        headers: Mapping[str, Any],
    ) -> None:
        """Sends bytes unchanged; see `publish`."""
        sent = self._begin(
            self._send,
            queue_name,
            body,
            content_type=content_type or "application/octet-stream",
            content_encoding=content_encoding or "binary",
            headers=dict(headers),
        )
        self._wait(sent, None)

    def publish_received(self, queue_name: str, raw: RawMessage, headers: Mapping[str, Any]) -> None:
        """Sends what was received, unchanged but for its headers; see `publish`."""
        self.publish_raw(queue_name, raw.body, raw.content_type, raw.content_encoding, headers)

    def close(self) -> None:
        """Waits for messages that are being sent, and closes the connections."""
        self.closed = True
        self._senders.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._close(self._idle.get())

    def _offer_ended(self, sent: "Future[None]") -> None:
        with self._lock:
            self._offered -= 1
        if not sent.cancelled() and (error := sent.exception()):
            logger.info("an offered message was lost: %s", error)

    def _begin(self, send: Callable[..., None], *arguments: Any, **named: Any) -> "Future[None]":
        """Sends in the background; raises `BrokerUnavailableError` if the publisher is closed."""
        try:
            return self._senders.submit(send, *arguments, **named)
        except RuntimeError as error:
            raise BrokerUnavailableError("the publisher is closed") from error

    def _wait(self, sent: "Future[None]", timeout: float | None) -> None:
        seconds = self.settings.timeout if timeout is None else timeout
        try:
            sent.result(seconds)
        except TimeoutError:
            sent.cancel()
            raise BrokerUnavailableError(
                f"the broker did not confirm a message within {seconds:g} s"
            ) from None
        except CancelledError as error:
            raise BrokerUnavailableError("the publisher was closed before a message was sent") from error

    def _send_task(self, stage: Stage, queue_name: str, text: str, headers: Mapping[str, Any]) -> None:
        """Sends a message as the Celery task of its stage."""
        shard = {SHARD_HEADER: 1} if f'"kind":"{stage.value}-shard"' in text else {}
        sent, redeliveries = time.time(), int(headers.get(REDELIVERIES_HEADER, 0))
        task = self._application.amqp.as_task_v2(
            # Empty, since they would put the prompt into the headers.
            *(uuid(), task_name(stage)),
            args=(text,),
            kwargs=seal(self.settings, queue_name, redeliveries, sent),
            argsrepr="",
            kwargsrepr="",
            ignore_result=True,
        )
        self._send(
            queue_name,
            task.body,
            serializer=self._application.conf.task_serializer,
            headers={**task.headers, **shard, SENT_HEADER: sent, **headers},
            **task.properties,
        )

    def _send(self, queue_name: str, body: Any, **options: Any) -> None:
        """Sends over an idle connection, and again over a new one if that turns out to be dead."""
        try:
            connection: Connection | None = self._idle.get_nowait()
        except queue.Empty:
            connection = None
        if connection is not None:
            try:
                self._send_over(connection, queue_name, body, options)
            except BROKER_ERRORS as error:
                self._close(connection)
                if isinstance(error, TimeoutError):
                    raise BrokerUnavailableError(f"the broker does not answer: {describe(error)}") from error
            else:
                self._idle.put(connection)
                return
        connection = self._application.connection_for_write(heartbeat=0)
        try:
            connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
            self._send_over(connection, queue_name, body, options)
        except BROKER_ERRORS as error:
            self._close(connection)
            raise BrokerUnavailableError(f"the broker is not available: {describe(error)}") from error
        except BaseException:
            self._close(connection)
            raise
        self._idle.put(connection)

    def _send_over(
        self, connection: Connection, queue_name: str, body: Any, options: Mapping[str, Any]
    ) -> None:
        """Sends, and waits for the confirmation.

        RabbitMQ refuses messages for a quorum queue without a leader, as it is for a moment after its creation.
        """
        deadline = time.monotonic() + self.settings.timeout
        while True:
            try:
                return self._send_once(connection, queue_name, body, options)
            except amqp.exceptions.MessageNacked:
                if time.monotonic() > deadline:
                    raise
                time.sleep(REFUSED_SECONDS)

    def _send_once(
        self, connection: Connection, queue_name: str, body: Any, options: Mapping[str, Any]
    ) -> None:
        Producer(connection.default_channel).publish(
            body,
            exchange="",
            routing_key=queue_name,
            declare=[self._declared(queue_name)],
            mandatory=True,  # Otherwise RabbitMQ confirms a message for a missing queue too.
            timeout=self.settings.timeout,
            confirm_timeout=self.settings.timeout,
            **options,
        )

    def _close(self, connection: Connection) -> None:
        """Closes a connection without a handshake, since the broker may not answer."""
        if self._rabbitmq:
            connection.collect()
        else:
            connection.release()


class HoldingPublisher:
    """Publishes what follows from a message, and holds it while the broker takes nothing.

    To have the message that is being handled delivered again would not help: what follows from it would be refused
    again, and a broker that refuses everything, because it is full or a replica, may not even take it back. A message
    that comes back meanwhile, since the connection was lost, joins the one that is held.
    """

    def __init__(self, publisher: BrokerPublisher, draining: threading.Event, pause: float) -> None:
        """Publishes through another publisher.

        Args:
            publisher: the publisher.
            draining: set when the worker stops; the message is then delivered again.
            pause: seconds before another try.
        """
        self._publisher = publisher
        self._draining = draining
        self._pause = pause

    def publish(self, message: Message) -> None:
        """Sends a message; raises what `BrokerPublisher.publish` raises once the worker stops."""
        self._hold(lambda: self._publisher.publish(message))

    def publish_text(
        self, stage: Stage, queue_name: str, text: str, *, headers: Mapping[str, Any] | None = None
    ) -> None:
        """Sends the text of a message to any queue; see `publish`."""
        self._hold(lambda: self._publisher.publish_text(stage, queue_name, text, headers=headers))

    def publish_received(self, queue_name: str, raw: RawMessage, headers: Mapping[str, Any]) -> None:
        """Sends what was received, unchanged but for its headers; see `publish`."""
        self._hold(lambda: self._publisher.publish_received(queue_name, raw, headers))

    def _hold(self, send: Callable[[], None]) -> None:
        held = False
        while True:
            try:
                return send()
            except BrokerUnavailableError as error:
                if self._draining.is_set() or self._publisher.closed:
                    raise
                if not held:
                    logger.warning("a message is held: %s", error)
                held = True
            self._draining.wait(self._pause)
