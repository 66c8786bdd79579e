"""A broker that answers with errors, on real brokers: workers wait and go on, and nothing is lost."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from kombu.entity import Queue

from harness.queue import (
    HARMLESS_WARNINGS,
    QueueHarness,
    clear,
    dead,
    events,
    gather,
    patient,
    read_all,
    settings_for,
    task,
)
from harness.servers import RabbitMQServer, ValkeyServer
from harness.waiting import WAIT, wait_until
from smalti.errors import BrokerUnavailableError
from smalti.messages import HELLO_QUEUE, EncodeTask, Message, Stage, dead_queue_name, queue_name
from smalti.parameters import Priority
from smalti.queue import Delivery, Outcome, celery_application
from smalti.queue.broker.queues import all_queues

pytestmark = [pytest.mark.filterwarnings(each) for each in HARMLESS_WARNINGS]

ROUNDS = 3.0
"""Seconds for which a broker refuses: time for the worker to connect again several times."""


class Held:
    """A handler that waits for the test, so that its message is in progress while the broker refuses."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, delivery: Delivery) -> Iterable[Message]:
        assert isinstance(delivery.message, EncodeTask)
        self.begun.set()
        self.go_on.wait(4 * WAIT)
        return [delivery.message.done()]


WAYS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "readonly": (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    "memory": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    "rights": (("ACL", "SETUSER", "default", "-@write"), ("ACL", "SETUSER", "default", "+@all")),
    "password": (("CONFIG", "SET", "requirepass", "another"), ("CONFIG", "SET", "requirepass", "")),
    "replicas": (
        ("CONFIG", "SET", "min-replicas-to-write", "2"),
        ("CONFIG", "SET", "min-replicas-to-write", "0"),
    ),
    "stale": (
        ("CONFIG", "SET", "replica-serve-stale-data", "no"),
        ("CONFIG", "SET", "replica-serve-stale-data", "yes"),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_valkey_that_refuses_is_waited_for(valkey: ValkeyServer, way: str) -> None:
    settings = settings_for(valkey, timeout=2.0)
    clear(settings)
    harm, repair = WAYS[way]
    harness, held, expected = QueueHarness(settings), Held(), {"in-progress", "after"}
    client = redis.Redis(port=valkey.port)
    try:
        harness.publisher.publish(task("in-progress"))
        consumer = harness.work(held)
        assert held.begun.wait(WAIT)
        for command in [*((WAYS["readonly"][0],) if way == "stale" else ()), harm]:
            client.execute_command(*command)
        client.execute_command("CLIENT", "KILL", "SKIPME", "yes")
        held.go_on.set()
        with pytest.raises(BrokerUnavailableError):
            harness.publisher.publish(task("refused"))
        time.sleep(ROUNDS)
        assert consumer.alive
        for command in [repair, *((WAYS["readonly"][1],) if way == "stale" else ())]:
            client.execute_command(*command)
        repaired = time.monotonic()
        harness.publisher.publish(task("after"), timeout=WAIT)
        told = gather(
            lambda: [event.job for event in events(settings)],
            lambda told: {"in-progress", "after"} <= set(told),
        )
        assert set(told) <= expected | {"refused"}
        # The waits between tries are bounded.
        assert time.monotonic() - repaired < WAIT
        assert dead(settings) == []
    finally:
        held.go_on.set()
        for command in (WAYS["stale"][1], repair, WAYS["readonly"][1]):
            with contextlib.suppress(redis.RedisError):
                client.execute_command(*command)
        client.close()
        harness.stop()


def test_message_that_valkey_does_not_record_is_not_lost(valkey: ValkeyServer) -> None:
    settings = settings_for(valkey, visibility_timeout=3600.0)
    clear(settings)
    harness = QueueHarness(settings)
    client = redis.Redis(port=valkey.port)
    try:
        client.execute_command("ACL", "SETUSER", "default", "-hset")
        harness.work()
        harness.publisher.publish(task("taken"), timeout=WAIT)  # Given away, but nobody takes a note of it.
        harness.wait_for(Outcome.DONE)
        assert harness.begun == ["taken"]
        assert [event.job for event in gather(lambda: events(settings), bool)] == ["taken"]
    finally:
        client.execute_command("ACL", "SETUSER", "default", "+@all")
        client.close()
        harness.stop()


@contextmanager
def channel_of(settings: Any) -> Iterator[Any]:
    with celery_application(patient(settings)).connection_for_write() as connection:
        yield connection.channel()


ENCODE = queue_name(Stage.ENCODE)
BATCH = queue_name(Stage.ENCODE, Priority.BATCH)


def replaced(rabbitmq: RabbitMQServer, settings: Any) -> Callable[[], None]:
    """Puts another queue in the place of one of ours; returns what takes it away again."""
    with channel_of(settings) as channel:
        channel.queue_delete(BATCH)
        Queue(BATCH, durable=True)(channel).declare()

    def repair() -> None:
        with channel_of(settings) as channel:
            channel.queue_delete(BATCH)

    return repair


def locked(rabbitmq: RabbitMQServer, settings: Any) -> Callable[[], None]:
    """Makes one of our queues belong to another connection."""
    with channel_of(settings) as channel:
        channel.queue_delete(BATCH)
    other = celery_application(patient(settings)).connection_for_write()
    Queue(BATCH, exclusive=True)(other.channel()).declare()
    return other.release


def without_rights(rabbitmq: RabbitMQServer, settings: Any) -> Callable[[], None]:
    """Takes the rights away."""
    rabbitmq.control("set_permissions", "guest", "^$", "^$", "^$")
    rabbitmq.control("close_all_connections", "rights have changed")
    return lambda: rabbitmq.control("set_permissions", "guest", ".*", ".*", ".*")


def with_another_password(rabbitmq: RabbitMQServer, settings: Any) -> Callable[[], None]:
    """Changes the password."""
    rabbitmq.control("change_password", "guest", "another")
    rabbitmq.control("close_all_connections", "the password has changed")
    return lambda: rabbitmq.control("change_password", "guest", "guest")


@pytest.mark.skipif(not RabbitMQServer.installed(), reason="needs RabbitMQ")
@pytest.mark.parametrize("refuse", [replaced, locked, without_rights, with_another_password])
def test_rabbitmq_that_refuses_is_waited_for(rabbitmq: RabbitMQServer, refuse: Any) -> None:
    settings = settings_for(rabbitmq, timeout=2.0)
    clear(settings)
    harness = QueueHarness(settings)
    repair = None
    try:
        consumer = harness.work()
        repair = refuse(rabbitmq, settings)
        with pytest.raises(BrokerUnavailableError):
            harness.publisher.publish(task("refused", priority=Priority.BATCH))
        time.sleep(ROUNDS)
        assert consumer.alive
        repair()
        repair = None

        def sent() -> bool:
            with contextlib.suppress(BrokerUnavailableError):
                harness.publisher.publish(task("after", priority=Priority.BATCH), timeout=WAIT)
                return True
            return False

        wait_until(sent)
        wait_until(lambda: "after" in harness.begun)
        assert dead(settings) == []
    finally:
        if repair is not None:
            repair()
        harness.stop()
        clear(settings)


@pytest.mark.skipif(not RabbitMQServer.installed(), reason="needs RabbitMQ")
@pytest.mark.parametrize("queue", ["smalti.rank.batch", "smalti.rank.dead"])
def test_queue_that_a_policy_limits_refuses_and_drops_nothing(rabbitmq: RabbitMQServer, queue: str) -> None:
    settings = settings_for(rabbitmq, timeout=1.0)
    clear(settings)
    harness = QueueHarness(settings)
    rabbitmq.control("set_policy", "small", "^smalti\\.rank", '{"max-length": 2}', "--apply-to", "queues")
    taken, refused = [], 0
    try:
        for number in range(8):
            try:
                harness.publisher.publish_text(Stage.RANK, queue, str(number))
                taken.append(str(number))
            except BrokerUnavailableError:
                refused += 1
    finally:
        rabbitmq.control("clear_policy", "small")
        harness.stop()
    assert refused
    found = [text for text, _ in read_all(settings, queue)]
    assert set(found) >= set(taken)
    assert taken[0] == "0"


@pytest.mark.skipif(not RabbitMQServer.installed(), reason="needs RabbitMQ")
def test_queue_that_is_deleted_under_a_consumer_is_declared_again(rabbitmq: RabbitMQServer) -> None:
    settings = settings_for(rabbitmq)
    clear(settings)
    harness = QueueHarness(settings)
    try:
        consumer = harness.work()
        with channel_of(settings) as channel:
            for name in (ENCODE, BATCH, dead_queue_name(Stage.ENCODE)):
                channel.queue_delete(name)
        harness.publisher.publish(task("after"), timeout=WAIT)
        wait_until(lambda: "after" in harness.begun)
        assert consumer.alive
    finally:
        harness.stop()
        clear(settings)


@pytest.mark.slow
@pytest.mark.skipif(not RabbitMQServer.installed(), reason="needs RabbitMQ")
def test_message_whose_acknowledgement_rabbitmq_did_not_wait_for_is_done_once(
    rabbitmq: RabbitMQServer,
) -> None:
    settings = settings_for(rabbitmq)
    clear(settings)
    rabbitmq.control("eval", "application:set_env(rabbit, consumer_timeout, 1000).")
    rabbitmq.control("eval", "application:set_env(rabbit, channel_tick_interval, 500).")
    harness, held = QueueHarness(settings), Held()
    try:
        consumer = harness.work(held)
        harness.publisher.publish(task("long"))
        assert held.begun.wait(WAIT)
        wait_until(lambda: not consumer.connected)
        wait_until(lambda: consumer.connected)
        time.sleep(ROUNDS)
        held.go_on.set()
        assert [event.job for event in gather(lambda: events(settings), bool)] == ["long"]
        assert consumer.alive
        assert harness.begun == ["long"]
    finally:
        held.go_on.set()
        rabbitmq.control("eval", "application:set_env(rabbit, consumer_timeout, 1800000).")
        rabbitmq.control("eval", "application:set_env(rabbit, channel_tick_interval, 60000).")
        harness.stop()


@pytest.mark.skipif(not RabbitMQServer.installed(), reason="needs RabbitMQ")
def test_queues_are_ours_by_their_names_and_wait_long_for_an_acknowledgement(
    rabbitmq: RabbitMQServer,
) -> None:
    queues: dict[str, Any] = all_queues(settings_for(rabbitmq))
    for name, queue in queues.items():
        assert name.startswith("smalti.")
        assert queue.queue_arguments["x-consumer-timeout"] == 24 * 3600 * 1000
        if name == HELLO_QUEUE:
            continue  # Losing a hello does no harm.
        assert queue.queue_arguments["x-overflow"] == "reject-publish"
        assert (queue.queue_arguments["x-delivery-limit"] > 10**9) == name.endswith(".dead")
