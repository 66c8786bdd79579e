"""Messages that a worker cannot handle, and another may: they are held back, and come again."""

import itertools
import json
import math
import time
from collections.abc import Iterable
from typing import Any

import pytest

from harness.queue import HARMLESS_WARNINGS, QueueHarness, dead, events, settings_for, task
from harness.servers import Server
from smalti.messages import MAX_CLOCK_SKEW_SECONDS, VERSION, FailureReason, Message, Stage
from smalti.parameters import Priority
from smalti.queue import Delivery, HoldBackError, Outcome
from smalti.queue.dead.headers import KIND
from smalti.queue.held.holding import (
    MAX_HELD_SECONDS,
    MAX_UNDATED_SECONDS,
    SINCE_HEADER,
    TIMES_HEADER,
    Holding,
    expiry_of,
    held_queue,
    split_held,
)

pytestmark = [pytest.mark.filterwarnings(each) for each in HARMLESS_WARNINGS]

KEY = "a1b2c3d4e5f6"


def newer(job: str, **changes: Any) -> str:
    """Returns a message of a version that nobody reads."""
    return json.dumps({**json.loads(task(job, **changes).to_json()), "version": VERSION + 1, "kind": "sing"})


def test_messages_of_a_newer_version_wait_without_a_thread_until_they_expire(
    queue_harness: QueueHarness,
) -> None:
    late = time.time() - MAX_CLOCK_SKEW_SECONDS
    texts = [newer(f"new{number}", expires=late + 3) for number in range(6)]
    for text in texts:
        queue_harness.publisher.publish_text(Stage.ENCODE, "smalti.encode.interactive", text)
    queue_harness.work(concurrency=1)
    queue_harness.publisher.publish(task("ours"))
    queue_harness.wait_for(Outcome.DONE)
    queue_harness.wait_for(Outcome.DEAD, 6)
    assert time.time() > late + MAX_CLOCK_SKEW_SECONDS + 3
    # The delays grow to their limit: at most eighteen times for each in three seconds, and not thousands.
    assert 6 <= queue_harness.outcomes[Outcome.HELD] <= 6 * 20
    letters = dead(queue_harness.settings)
    assert sorted(text for text, _ in letters) == sorted(texts)
    assert {headers[KIND] for _, headers in letters} == {"version"}
    assert [event.job for event in events(queue_harness.settings)] == ["ours"]


def test_work_of_another_is_there_when_a_worker_comes_that_does_it(broker: Server) -> None:
    first, second = QueueHarness(settings_for(broker)), QueueHarness(settings_for(broker))
    sent = [task("a"), task("b", priority=Priority.BATCH), task("c", version=3, routes={Stage.ENCODE: KEY})]
    seen: list[float] = []

    def refuse(delivery: Delivery) -> Iterable[Message]:
        seen.append(time.monotonic())
        raise HoldBackError("this worker has another model")

    try:
        first.work(refuse, key=KEY)
        for message in sent:
            first.publisher.publish(message)
        first.wait_for(Outcome.HELD, 9)
    finally:
        first.stop()
    assert set(first.outcomes) <= {Outcome.HELD, Outcome.GIVEN_BACK}
    received: list[Message] = []
    try:
        second.work(lambda delivery: received.append(delivery.message) or [], key=KEY)  # type: ignore[func-returns-value]
        second.wait_for(Outcome.DONE, 3)
    finally:
        second.stop()
    # It is no attempt, and nothing else has changed.
    assert sorted(received, key=lambda message: message.job) == sent


def test_a_message_comes_back_after_its_delay(broker: Server) -> None:
    harness = QueueHarness(settings_for(broker, retry_first=0.4, retry_max=0.8))
    seen: list[float] = []

    def refuse_thrice(delivery: Delivery) -> Iterable[Message]:
        seen.append(time.monotonic())
        if len(seen) < 4:
            raise HoldBackError("not yet")
        return []

    try:
        harness.work(refuse_thrice, concurrency=1)
        harness.publisher.publish(task())
        harness.wait_for(Outcome.DONE)
    finally:
        harness.stop()
    waits = [after - before for before, after in itertools.pairwise(seen)]
    assert [wait >= delay for wait, delay in zip(waits, (0.4, 0.8, 0.8), strict=True)] == [True] * 3


def test_what_is_held_back_survives_a_restart_of_the_broker(broker: Server) -> None:
    harness = QueueHarness(settings_for(broker, retry_first=2.0, retry_max=2.0))
    tries: list[str] = []

    def refuse_once(delivery: Delivery) -> Iterable[Message]:
        tries.append(delivery.message.job)
        if len(tries) == 1:
            raise HoldBackError("not yet")
        return []

    try:
        harness.work(refuse_once)
        harness.publisher.publish(task())
        harness.wait_for(Outcome.HELD)
        broker.stop()
        broker.start()
        harness.wait_for(Outcome.DONE)
    finally:
        harness.stop()
    assert len(tries) == 2


def test_work_that_nobody_does_has_expired_in_the_end(queue_harness: QueueHarness) -> None:
    def refuse(delivery: Delivery) -> Iterable[Message]:
        raise HoldBackError("this worker has another model")

    queue_harness.work(refuse)
    queue_harness.publisher.publish(task(expires=time.time() - MAX_CLOCK_SKEW_SECONDS + 1))
    queue_harness.wait_for(Outcome.EXPIRED)
    [event] = events(queue_harness.settings)
    assert getattr(event, "reason", None) == FailureReason.EXPIRED
    assert dead(queue_harness.settings) == []


def test_messages_are_held_back_while_the_worker_stops(queue_harness: QueueHarness) -> None:
    """The message is then in the broker, and not lost with the worker."""
    queue_harness.publisher.publish_text(Stage.ENCODE, "smalti.encode.interactive", newer("new"))
    consumer = queue_harness.work()
    queue_harness.wait_for(Outcome.HELD)
    assert consumer.stop(5)
    held = queue_harness.outcomes[Outcome.HELD]
    again = QueueHarness(queue_harness.settings)
    try:
        again.work()
        again.wait_for(Outcome.HELD)
    finally:
        again.stop()
    assert held >= 1
    assert again.outcomes[Outcome.DEAD] == 0


@pytest.mark.parametrize(
    ("text", "expires"),
    [
        ('{"expires": 5}', 5 + MAX_CLOCK_SKEW_SECONDS),
        ('{"expires": 5.5, "version": "x"}', 5.5 + MAX_CLOCK_SKEW_SECONDS),
        ('{"expires": true}', None),
        ('{"expires": "5"}', None),
        ('{"expires": 1e999}', None),
        ('{"expires": null}', None),
        ("{}", None),
        ("[]", None),
        ("{", None),
    ],
)
def test_expiry_is_read_whatever_else_a_newer_message_says(text: str, expires: float | None) -> None:
    assert expiry_of(text) == expires


def test_holding_ends_when_a_message_expires_or_after_a_time() -> None:
    fresh = Holding.read({}, 1000.0)
    assert (fresh.times, fresh.since) == (0, 1000.0)
    assert fresh.left(1010.0, 1000.0) == 10
    assert fresh.left(990.0, 1000.0) == -10
    assert fresh.left(None, 1000.0) == MAX_UNDATED_SECONDS
    assert fresh.left(None, 1001.0 + MAX_UNDATED_SECONDS) == -1
    assert fresh.left(1e12, 1001.0 + MAX_HELD_SECONDS) == -1


@pytest.mark.parametrize(
    ("left", "delays"),
    [
        (1e9, [0.5, 1.0, 16.0, 30.0, 30.0, 30.0]),
        # Not much longer than it may be, and with the delays of the others.
        (5.0, [0.5, 1.0, 8.0, 8.0, 8.0, 8.0]),
        (0.1, [0.5] * 6),
    ],
)
def test_delays_grow_to_a_limit(left: float, delays: list[float]) -> None:
    times = (0, 1, 5, 6, 7, 10**6)
    assert [Holding(times=each, since=0).delay(0.5, 30.0, left) for each in times] == delays


@pytest.mark.parametrize("wrong", [-1, "x", None, 2**40, math.nan, math.inf, [1], True])
def test_headers_that_make_no_sense_are_replaced(wrong: Any) -> None:
    read = Holding.read({TIMES_HEADER: wrong, SINCE_HEADER: wrong}, 1000.0)
    assert read.since in (1000.0, 1.0)  # True counts as one second.
    assert read.times in (0, 1)
    again = Holding.read(read.next_headers, 1000.0)
    assert again.times == read.times + 1


def test_names_of_queues_say_where_messages_go_back_to() -> None:
    assert split_held(held_queue("smalti.encode.batch", 0.5)) == ("smalti.encode.batch", 500)
    assert split_held("smalti.encode.batch") == ("smalti.encode.batch", None)
    assert split_held("smalti.encode.batch.held.x") == ("smalti.encode.batch.held.x", None)
