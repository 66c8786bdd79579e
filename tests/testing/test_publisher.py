"""The broker in memory."""

import pytest

from harness.queue import task
from smalti.errors import BrokerUnavailableError, OversizedMessageError
from smalti.testing.publisher import MemoryPublisher


def test_messages_are_kept_in_order_until_they_are_taken() -> None:
    publisher = MemoryPublisher()
    first, second = task("j1"), task("j2")
    publisher.publish(first)
    assert publisher.offer(second)
    assert publisher.take() == [first, second]
    assert publisher.take() == []


def test_unavailable_broker_keeps_nothing() -> None:
    publisher = MemoryPublisher()
    publisher.available = False
    with pytest.raises(BrokerUnavailableError):
        publisher.publish(task("j1"))
    assert not publisher.offer(task("j2"))
    assert publisher.take() == []


def test_oversized_message_is_refused() -> None:
    message = task("j1").model_copy(update={"prompt": "x" * 100_000})
    publisher = MemoryPublisher()
    with pytest.raises(OversizedMessageError):
        publisher.publish(message)
    assert publisher.take() == []
