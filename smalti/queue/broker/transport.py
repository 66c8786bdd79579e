"""Kombu's transports, made stricter: the name in the broker's certificate is checked, and no message is unpacked.

Certificates are read from their files for each connection, so that renewed ones are used at the next.
"""

import errno
import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import amqp
import redis
from kombu.exceptions import KombuError
from kombu.message import Message as KombuMessage
from kombu.transport import pyamqp
from kombu.transport import redis as kombu_redis
from kombu.transport.virtual import base as virtual
from kombu.utils.json import dumps

from smalti.messages import HELLO_QUEUE
from smalti.queue.broker.queues import MAX_HELLOS, UNUSED_SECONDS, is_keyed
from smalti.queue.held.holding import KEEP_SCRIPT, held_set, split_held

logger = logging.getLogger(__name__)

BROKER_ERRORS: Final = (OSError, KombuError, amqp.AMQPError, amqp.exceptions.MessageNacked, redis.RedisError)
"""What the client libraries raise. An error that the broker answers with counts as a lost connection: a replica that
was promoted, memory, rights or a queue can be as they were a moment later, and only a new connection finds out."""
RAW: Final = "smalti_raw"
"""The key under which a worker keeps what came, beside the headers of the message; it never leaves the process."""
COMPRESSION: Final = "compression"
"""The header at which kombu unpacks a body on receipt, whatever size comes out."""


def describe(error: BaseException) -> str:
    """Returns an error of `BROKER_ERRORS` as one line; some have no text."""
    return " ".join(str(error).split()) or type(error).__name__


class ValkeyMessage(virtual.Message):
    """A message of Valkey whose body stays as it came."""

    def __init__(self, payload: dict[str, Any], channel: Any = None, **options: Any) -> None:
        """Takes the arguments of kombu's messages."""
        compression = _without_compression(payload.get("headers"))
        super().__init__(payload, channel, **options)
        if compression is not None:
            self.headers[COMPRESSION] = compression


class RabbitMessage(pyamqp.Message):
    """A message of RabbitMQ whose body stays as it came."""

    def __init__(self, msg: amqp.Message, channel: Any = None, **options: Any) -> None:
        """Takes the arguments of kombu's messages."""
        compression = _without_compression(msg.properties.get("application_headers"))
        super().__init__(msg, channel, **options)
        if compression is not None:
            self.headers[COMPRESSION] = compression


def _without_compression(headers: Any) -> Any:
    return headers.pop(COMPRESSION, None) if isinstance(headers, dict) else None


class ValkeyTls(redis.SSLConnection):
    """A TLS connection that trusts the given authorities alone; the library would trust those of the system as well."""

    def _wrap_socket_with_ssl(self, sock: Any) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=self.ca_certs)
        if self.certfile:
            context.load_cert_chain(self.certfile, self.keyfile)
        return context.wrap_socket(sock, server_hostname=self.host)


class _ValkeyQoS(kombu_redis.QoS):
    def append(self, message: Any, delivery_tag: Any) -> None:
        """Records who has a message; if the broker takes no record, it is handled all the same.

        It is in no list any more, so that it would be lost.
        """
        try:
            super().append(message, delivery_tag)
        except BROKER_ERRORS as error:
            logger.warning("the broker does not record that this worker has a message: %s", error)
            virtual.QoS.append(self, message, delivery_tag)


class _ValkeyChannel(kombu_redis.Channel):
    Message = ValkeyMessage
    QoS = _ValkeyQoS
    connection_class_ssl = ValkeyTls

    def _put(self, queue: str, message: dict[str, Any], **options: Any) -> None:
        """Adds a message to a queue; one that is held back waits in a sorted set, as if sent to the queue already."""
        origin, milliseconds = split_held(queue)
        if milliseconds is None:
            super()._put(queue, message, **options)
            if queue == HELLO_QUEUE:
                self.client.ltrim(queue, 0, MAX_HELLOS - 1)
            elif is_keyed(queue):
                self.client.expire(queue, UNUSED_SECONDS)
            return
        message["properties"]["delivery_info"]["routing_key"] = origin
        arguments = milliseconds / 1000, dumps(message), UNUSED_SECONDS
        self.client.eval(KEEP_SCRIPT, 1, held_set(origin), *arguments)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        """Subscribes a queue to a channel; by default kombu would also keep its name for ever."""
        if self.typeof(exchange).type == "fanout":
            self._fanout_queues[queue] = (exchange, "")
            return
        super()._queue_bind(exchange, routing_key, pattern, queue)


class ValkeyTransport(kombu_redis.Transport):
    """The transport for Valkey and Redis."""

    Channel = _ValkeyChannel
    connection_errors = (*BROKER_ERRORS, *kombu_redis.Transport.connection_errors)
    channel_errors = ()

    def heartbeat_check(self, connection: Any, rate: int = 2) -> None:
        """Asks whether the broker still answers those who listen to a channel; Celery's event loop does so by itself.

        A listener sends nothing, and so would not notice that its broker has gone without a word.
        """
        cycle: Any = self.cycle
        cycle.maybe_check_subclient_health()


class _RabbitChannel(pyamqp.Channel):
    Message = RabbitMessage

    def _on_basic_cancel(self, consumer_tag: str) -> None:
        """Raises `ConnectionResetError` when RabbitMQ ends a consumer, because its queue was deleted.

        The library's own error has no number, and Celery swallows such errors in the first moment of a connection: the
        worker would wait for ever.
        """
        try:
            super()._on_basic_cancel(consumer_tag)
        except amqp.exceptions.ConsumerCancelled as error:
            raise ConnectionResetError(errno.ECONNRESET, "RabbitMQ has ended a consumer") from error


class _RabbitConnection(pyamqp.Connection):
    Channel = _RabbitChannel

    def _on_blocked(self) -> None:
        logger.warning("RabbitMQ takes nothing from publishers, since its memory or disk runs out")


class RabbitTransport(pyamqp.Transport):
    """The transport for RabbitMQ."""

    Connection = _RabbitConnection
    connection_errors = recoverable_connection_errors = (*BROKER_ERRORS, *pyamqp.Transport.connection_errors)
    channel_errors = recoverable_channel_errors = ()

    def establish_connection(self) -> Any:
        """Connects; without `server_hostname` the library would accept a certificate for any name."""
        broker: Any = self.client
        if broker.ssl:
            broker.ssl = {**broker.ssl, "server_hostname": broker.hostname}
        return super().establish_connection()


@dataclass(frozen=True)
class RawMessage:
    """What the broker has of a message, with its signature if it has one."""

    body: bytes
    content_type: str | None
    content_encoding: str | None
    headers: Mapping[str, Any]

    @classmethod
    def of(cls, message: KombuMessage) -> "RawMessage":
        """Returns what kombu has received."""
        body = message.body
        headers = {name: value for name, value in (message.headers or {}).items() if name != RAW}
        return cls(
            body if isinstance(body, bytes) else str(body).encode(),
            message.content_type,
            message.content_encoding,
            headers,
        )
