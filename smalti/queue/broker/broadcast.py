"""What processes of one kind tell each other through the broker: everyone hears it who is there, and nobody else.

RabbitMQ has an exchange that copies a message to a queue of each listener, Valkey has PUB/SUB. Nothing is kept for
those who are away, and what is lost is not sent again.
"""

import contextlib
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

from kombu.connection import Connection
from kombu.entity import Exchange, Queue
from kombu.exceptions import KombuError
from kombu.message import Message as KombuMessage
from kombu.messaging import Consumer, Producer

from smalti.errors import MalformedMessageError
from smalti.messages import MAX_MESSAGE_BYTES
from smalti.queue.application import celery_application
from smalti.queue.broker.transport import BROKER_ERRORS, describe
from smalti.queue.settings import BrokerSettings
from smalti.queue.signing import ANYONE, SIGNER, check_seal, seal

log = logging.getLogger(__name__)

MAX_WAITING: Final = 256
"""Messages that wait to be sent; more are dropped."""
MAX_UNHEARD: Final = 1000
"""Messages that RabbitMQ keeps for a listener that is slow; it drops the oldest."""
MAX_BODY_BYTES: Final = 4 * MAX_MESSAGE_BYTES
RETRY_SECONDS: Final = 1.0
LISTEN_SECONDS: Final = 1.0
STOP_SECONDS: Final = 5.0

Hear = Callable[[str], None]


class Broadcast:
    """Tells the others, and hears them, in threads of its own; thread-safe."""

    def __init__(self, name: str, owner: str, hear: Hear, settings: BrokerSettings) -> None:
        """Connects to nothing before `start`.

        Args:
            name: what they have in common; the name of the exchange.
            owner: the service that may tell something, as in the names of signing certificates.
            hear: called with each text that another one tells, from one thread; must not block.
            settings: the broker, and how messages are signed.
        """
        self._name = name
        self._owner = owner
        self._hear = hear
        self._settings = settings
        self._application = celery_application(settings)
        self._id = str(uuid.uuid4())
        self._exchange = Exchange(name, type="fanout", durable=False, delivery_mode="transient")
        self._waiting: queue.Queue[str] = queue.Queue(MAX_WAITING)
        self._stopped = threading.Event()
        self.listening = threading.Event()
        """Set while texts of others are received."""
        self._threads = [
            threading.Thread(target=self._keep_on, args=(work,), name=f"{name} {what}", daemon=True)
            for what, work in (("sending", self._send_all), ("listening", self._listen))
        ]

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends the threads; what waits to be sent is dropped."""
        self._stopped.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(STOP_SECONDS)

    def tell(self, text: str) -> bool:
        """Tells the others something, without waiting; returns False if it was dropped."""
        try:
            self._waiting.put_nowait(text)
        except queue.Full:
            return False
        return True

    def _keep_on(self, work: Callable[[], None]) -> None:
        """Does something again whenever the broker goes away."""
        told = False
        while not self._stopped.is_set():
            try:
                work()
                told = False
            except BROKER_ERRORS as error:
                if not told:
                    log.info("%s: the broker is away: %s", self._name, describe(error))
                told = True
            except Exception:
                log.exception("%s has failed", self._name)
            finally:
                if work == self._listen:
                    self.listening.clear()
            self._stopped.wait(RETRY_SECONDS)

    @contextlib.contextmanager
    def _connected(self, **options: Any) -> Any:
        connection: Connection = self._application.connection_for_write(**options)
        try:
            connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
            yield connection
        finally:
            connection.collect()  # Without a handshake, since the broker may not answer.

    def _send_all(self) -> None:
        with self._connected(heartbeat=0) as connection:
            producer = Producer(connection.default_channel, exchange=self._exchange)
            while not self._stopped.is_set():
                try:
                    text = self._waiting.get(timeout=LISTEN_SECONDS)
                except queue.Empty:
                    continue
                body = [[self._id, text], seal(self._settings, self._name, 0, time.time()), {}]
                serializer = self._application.conf.task_serializer
                producer.publish(body, routing_key="", serializer=serializer, timeout=self._settings.timeout)

    def _listen(self) -> None:
        own = Queue(
            f"{self._name}.{uuid.uuid4()}",
            self._exchange,
            durable=False,
            exclusive=True,
            auto_delete=True,
            queue_arguments={"x-max-length": MAX_UNHEARD},
        )
        with self._connected(heartbeat=self._settings.heartbeat) as connection:
            consumer = Consumer(
                connection.default_channel,
                queues=[own],
                on_message=self._receive,
                no_ack=True,
                accept=self._application.conf.accept_content,
            )
            with consumer:
                self.listening.set()
                while not self._stopped.is_set():
                    with contextlib.suppress(TimeoutError):
                        connection.drain_events(timeout=LISTEN_SECONDS)
                    connection.heartbeat_check()

    def _receive(self, message: KombuMessage) -> None:
        try:
            sender, text = self._read(message)
        except (KombuError, MalformedMessageError, ValueError) as error:
            log.warning("%s: a message is dropped: %s", self._name, " ".join(str(error).split())[:200])
            return
        if sender != self._id:
            self._hear(text)

    def _read(self, message: KombuMessage) -> tuple[str, str]:
        """Returns who tells something, and what; raises an error if it is not accepted."""
        if len(message.body) > MAX_BODY_BYTES:
            raise MalformedMessageError("it is too large")
        content: Any = message.decode()
        if not (isinstance(content, list) and len(content) == 3):
            raise MalformedMessageError("it has another form")
        arguments, options, _ = content
        if not (isinstance(options, Mapping) and isinstance(arguments, list) and len(arguments) == 2):
            raise MalformedMessageError("it has another form")
        if self._settings.signed:
            check_seal(options, self._name)
            if options.get(SIGNER) not in (self._owner, ANYONE):
                raise MalformedMessageError(f"only the {self._owner} may send it")
        return str(arguments[0]), str(arguments[1])
