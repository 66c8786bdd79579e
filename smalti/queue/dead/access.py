"""Looking into dead-letter queues, and taking letters out of them, on both brokers."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import amqp
from celery import Celery
from kombu.connection import Connection
from kombu.message import Message as KombuMessage
from kombu.utils.json import loads

from smalti.errors import BrokerUnavailableError
from smalti.queue.application import celery_application
from smalti.queue.broker.queues import uses_rabbitmq
from smalti.queue.broker.transport import BROKER_ERRORS, RawMessage, describe
from smalti.queue.dead.headers import without_death
from smalti.queue.dead.letters import DeadLetter, LetterFilter
from smalti.queue.publisher import REDELIVERIES_HEADER, BrokerPublisher
from smalti.queue.settings import BrokerSettings
from smalti.queue.signing import SIGNED_TYPE

PAGE: Final = 100
"""Letters that Valkey is asked for at a time."""


@dataclass(frozen=True)
class HeldLetter:
    """A letter that is being looked at. It stays in its queue, unless it is removed."""

    letter: DeadLetter
    remove: Callable[[], None]
    """Takes the letter out of its queue; raises `BrokerUnavailableError`."""


class DeadLetters:
    """The dead letters of a broker. Looking at them changes nothing; a process that dies while it looks loses none."""

    def __init__(self, settings: BrokerSettings) -> None:
        """Connects when the first letter is asked for; raises `InvalidInputError` for an invalid setting."""
        self._settings = settings
        self._application: Celery = celery_application(settings)
        self._accept = (SIGNED_TYPE,) if settings.signed else ("application/json",)

    def find(self, chosen: LetterFilter, *, old: bool = False) -> Generator[HeldLetter, None, None]:
        """Yields the letters that are meant, the oldest of each queue first.

        Letters that come while it looks are left for the next time: one that is sent again may come back at once.

        RabbitMQ lends each letter to one reader at a time, until the iterator ends: a second reader does not see those
        that the first one holds.

        Args:
            chosen: which ones.
            old: look also into the queues of version 0.1, and at the messages that wait in them.

        Raises:
            BrokerUnavailableError: the broker does not answer, or refuses.
        """
        with _translated(), self._connected() as connection:
            look = self._of_rabbitmq if uses_rabbitmq(self._settings) else self._of_valkey
            for queue in chosen.queues(old=old):
                for held in look(connection, queue):
                    if chosen.matches(held.letter):
                        yield held

    def replay(self, held: HeldLetter, publisher: BrokerPublisher) -> None:
        """Sends a letter to its queue again, and takes it out of the dead ones once the broker has it.

        If the process dies in between, it is in both, and may be handled twice, which is harmless.

        Raises:
            MalformedMessageError: a worker would refuse it; it stays.
            BrokerUnavailableError: the broker does not answer, or refuses; it stays.
        """
        letter = held.letter
        letter.check_replay()
        headers = without_death(letter.raw.headers, REDELIVERIES_HEADER)
        publisher.publish_received(letter.origin, letter.raw, headers)
        held.remove()

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        connection = self._application.connection_for_read(heartbeat=0)
        try:
            connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
            yield connection
        finally:
            # Without a handshake, since the broker may not answer. RabbitMQ takes back what was lent.
            connection.collect(socket_timeout=self._settings.timeout)

    def _of_rabbitmq(self, connection: Connection, queue: str) -> Iterator[HeldLetter]:
        channel: Any = connection.channel()
        try:
            there = channel.queue_declare(queue, passive=True).message_count
        except amqp.NotFound:
            return
        lent = 0
        try:
            while lent < there and (message := channel.basic_get(queue, no_ack=False)) is not None:
                lent += 1
                received = channel.message_to_python(message)
                yield HeldLetter(self._letter(queue, RawMessage.of(received)), _translated()(received.ack))
        finally:
            if lent:
                with suppress(*BROKER_ERRORS):
                    channel.close()

    def _of_valkey(self, connection: Connection, queue: str) -> Iterator[HeldLetter]:
        channel: Any = connection.channel()
        client = channel.client
        passed, left = 0, client.llen(queue)
        while left and (page := client.lrange(queue, -(passed + PAGE), -(passed + 1))):
            # New letters come in at the left, so that places from the right do not move.
            for value in page[: -left - 1 : -1]:
                left -= 1
                removed: list[bool] = []
                raw = _raw_of(channel, value)
                if raw is not None:
                    yield HeldLetter(self._letter(queue, raw), _remover(client, queue, value, removed))
                passed += not removed

    def _letter(self, queue: str, raw: RawMessage) -> DeadLetter:
        return DeadLetter(queue=queue, raw=raw, accept=self._accept)


def _raw_of(channel: Any, value: bytes) -> RawMessage | None:
    """Returns an entry of Valkey's list; None if it is no message of kombu's."""
    try:
        message: KombuMessage = channel.Message(loads(value), channel=channel)
    except Exception:
        return None
    return RawMessage.of(message)


def _remover(client: Any, queue: str, value: bytes, removed: list[bool]) -> Callable[[], None]:
    def remove() -> None:
        client.lrem(queue, -1, value)
        removed.append(True)

    return _translated()(remove)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except BROKER_ERRORS as error:
        raise BrokerUnavailableError(f"the broker is not available: {describe(error)}") from error
