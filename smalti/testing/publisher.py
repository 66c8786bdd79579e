"""A broker in memory: keeps the messages that it is given."""

import threading

from smalti.errors import BrokerUnavailableError
from smalti.messages import Message


class MemoryPublisher:
    """A `smalti.queue.Publisher` that keeps messages in a list; thread-safe."""

    def __init__(self) -> None:
        self.available = True
        """False makes it a broker that does not answer."""
        self._sent: list[Message] = []
        self._lock = threading.Lock()

    def publish(self, message: Message, *, timeout: float | None = None) -> None:  # noqa: D102
        message.to_json()  # Raises for a message that is too large, as the broker's publisher does.
        if not self.available:
            raise BrokerUnavailableError("the broker is not available")
        with self._lock:
            self._sent.append(message)

    def offer(self, message: Message) -> bool:  # noqa: D102
        try:
            self.publish(message)
        except BrokerUnavailableError:
            return False
        return True

    def take(self) -> list[Message]:
        """Returns the messages that were sent since the last call, oldest first."""
        with self._lock:
            sent, self._sent = self._sent, []
        return sent
