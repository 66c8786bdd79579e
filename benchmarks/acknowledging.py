"""Measures how long an acknowledgement waits in a worker, and how long a free thread waits for its next message."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measuring import Times
from benchmarks.report import Row
from harness.queue import settings_for, task
from harness.waiting import wait_until
from smalti.messages import Message, Stage
from smalti.queue import BrokerPublisher, BrokerSettings, Delivery, consume
from smalti.queue.worker import DeadLetteringConsumer
from smalti.up.servers import ValkeyServer

THREADS = 4


def measure_acknowledgements(folder: Path, messages: int) -> Iterator[Row]:
    """Measures both on Valkey, with handlers that do nothing.

    Args:
        folder: folder for the data of the broker.
        messages: number of messages.
    """
    with ValkeyServer(folder) as server:
        settings = settings_for(server)
        waits, _ = _work(settings, messages, threads=THREADS, one_by_one=True)
        yield Row("acknowledgement after the end of its handler, one message at a time", str(Times(waits)))
        waits, _ = _work(settings, messages, threads=THREADS, one_by_one=False)
        yield Row(f"acknowledgement after the end of its handler, {THREADS} threads busy", str(Times(waits)))
        _, gaps = _work(settings, messages, threads=1, one_by_one=False)
        yield Row("from the end of a handler to the next one, one thread, a full queue", str(Times(gaps)))


def _work(
    settings: BrokerSettings, messages: int, *, threads: int, one_by_one: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the waiting times of acknowledgements, and the times between two handlers, in seconds."""
    begins: list[float] = []
    ends: list[float] = []

    def handle(delivery: Delivery) -> Iterable[Message]:
        begins.append(time.perf_counter())
        ends.append(time.perf_counter())
        return ()

    publisher = BrokerPublisher(settings)
    with _timed_acknowledgements() as waits:
        if not one_by_one:
            for number in range(messages):
                publisher.publish(task(f"j{number}"))
        with consume(Stage.ENCODE, handle, concurrency=threads, publisher=publisher, settings=settings):
            for number in range(messages if one_by_one else 0):
                publisher.publish(task(f"j{number}"))
                wait_until(lambda: len(waits) > number)  # noqa: B023 - It is called in the same iteration.
            wait_until(lambda: len(waits) == messages)
    publisher.close()
    return tuple(waits), tuple(begin - end for begin, end in zip(begins[1:], ends, strict=False))


@contextmanager
def _timed_acknowledgements() -> Iterator[list[float]]:
    """Yields a list that collects the seconds from each handler's end to the broker's answer to its acknowledgement."""
    waits: list[float] = []
    due: dict[int, float] = {}
    ask, acknowledge = DeadLetteringConsumer.call_soon_ack, DeadLetteringConsumer._acknowledge

    def timed_ask(consumer: DeadLetteringConsumer, call: Any, *arguments: Any, **options: Any) -> Any:
        due[id(call.__self__)] = time.perf_counter()
        return ask(consumer, call, *arguments, **options)

    def timed_acknowledge(consumer: DeadLetteringConsumer, call: Any, *arguments: Any) -> None:
        acknowledge(consumer, call, *arguments)
        waits.append(time.perf_counter() - due.pop(id(call.__self__)))

    DeadLetteringConsumer.call_soon_ack = timed_ask  # type: ignore[method-assign, assignment]
    DeadLetteringConsumer._acknowledge = timed_acknowledge  # type: ignore[method-assign, assignment]
    try:
        yield waits
    finally:
        DeadLetteringConsumer.call_soon_ack = ask  # type: ignore[method-assign]
        DeadLetteringConsumer._acknowledge = acknowledge  # type: ignore[method-assign]
