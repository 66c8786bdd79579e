"""A message as the broker delivered it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kombu.message import Message as KombuMessage

RAW: Final = "smalti_raw"
"""The key under which a worker keeps what came, beside the headers of the message; it never leaves the process."""


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


@dataclass(frozen=True)
class ReceivedMessage:
    """A message as the broker delivered it."""

    text: str
    queue: str
    raw: RawMessage
    """What goes to the dead-letter queue if the message is given up."""
    redelivered: bool = False
    """Whether the broker has delivered it before."""
    redeliveries: int = 0
    """Redeliveries counted so far, from its header."""
    sent: float | None = None
    """Unix time of its sending; None if unknown."""
    signer: str | None = None
    """The service whose key has signed it; None if messages are not signed."""
    problem: str = ""
    """Why its signature does not hold; empty if it does, or if messages are not signed."""
