"""Kombu's transports, made stricter: the name in the broker's certificate is checked, and no message is unpacked.

Certificates are read from their files for each connection, so that renewed ones are used at the next.
"""

import ssl
from typing import Any, Final

import amqp
import redis
from kombu.transport import pyamqp
from kombu.transport import redis as kombu_redis
from kombu.transport.virtual import base as virtual

COMPRESSION: Final = "compression"
"""The header at which kombu unpacks a body on receipt, whatever size comes out."""


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


class _ValkeyChannel(kombu_redis.Channel):
    Message = ValkeyMessage
    connection_class_ssl = ValkeyTls


class ValkeyTransport(kombu_redis.Transport):
    """The transport for Valkey and Redis."""

    Channel = _ValkeyChannel


class _RabbitChannel(pyamqp.Channel):
    Message = RabbitMessage


class _RabbitConnection(pyamqp.Connection):
    Channel = _RabbitChannel
    blocked = False
    """Whether the broker takes nothing from publishers, because it runs out of memory or disk space."""

    def _on_blocked(self) -> None:
        self.blocked = True

    def _on_unblocked(self) -> None:
        self.blocked = False


def is_blocked(connection: Any) -> bool:
    """Returns whether the broker takes nothing from publishers on a connection of kombu's."""
    return bool(getattr(getattr(connection, "_connection", None), "blocked", False))


class RabbitTransport(pyamqp.Transport):
    """The transport for RabbitMQ."""

    Connection = _RabbitConnection

    def establish_connection(self) -> Any:
        """Connects; without `server_hostname` the library would accept a certificate for any name."""
        broker: Any = self.client
        if broker.ssl:
            broker.ssl = {**broker.ssl, "server_hostname": broker.hostname}
        return super().establish_connection()
