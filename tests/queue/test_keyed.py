"""Queues of a key, declared when they are needed, and the hellos of workers."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import redis

from harness.paths import SAMPLES
from harness.queue import (
    HARMLESS_WARNINGS,
    QueueHarness,
    clear,
    dead,
    events,
    gather,
    read_all,
    settings_for,
    signing_as,
    task,
)
from harness.servers import RabbitMQServer, Server, ValkeyServer
from harness.waiting import wait_until
from smalti.messages import HELLO_QUEUE, Hello, Message, Stage, parse_hello, queue_name
from smalti.parameters import Priority
from smalti.queue import (
    BrokerPublisher,
    BrokerSettings,
    DeadLetters,
    Delivery,
    HoldBackError,
    LetterFilter,
    Outcome,
    celery_application,
)
from smalti.queue.broker.order import InteractiveFirst
from smalti.queue.broker.queues import MAX_HELLOS, UNUSED_SECONDS, declared, stage_of, stage_queues
from smalti.queue.dead.headers import REASON
from smalti.queue.held.holding import held_queue, held_set
from smalti.queue.signing import check_sender

pytestmark = [pytest.mark.filterwarnings(each) for each in HARMLESS_WARNINGS]

ONE, OTHER = "a1b2c3d4e5f6", "0d0e0c0d0e00"
KEYED = queue_name(Stage.ENCODE, Priority.INTERACTIVE, ONE)


def hello(**changes: Any) -> Hello:
    fields = json.loads((SAMPLES / "messages" / "3.Hello.json").read_text(encoding="utf-8"))
    return parse_hello(json.dumps({**fields, **changes}))


def routed(job: str, key: str, **changes: Any) -> Any:
    return task(job, version=3, routes={Stage.ENCODE: key}, **changes)


def test_a_worker_gets_the_work_of_its_key_and_that_without_one(queue_harness: QueueHarness) -> None:
    for job, key in (("one", ONE), ("other", OTHER)):
        queue_harness.publisher.publish(routed(job, key))
        queue_harness.publisher.publish(routed(f"{job}-batch", key, priority=Priority.BATCH))
    queue_harness.publisher.publish(task("old"))
    queue_harness.work(key=ONE)
    queue_harness.wait_for(Outcome.DONE, 3)
    assert sorted(queue_harness.begun) == ["old", "one", "one-batch"]
    for priority in Priority:
        [(text, _)] = read_all(queue_harness.settings, queue_name(Stage.ENCODE, priority, OTHER))
        assert json.loads(text)["routes"] == {"encode": OTHER}


def test_a_worker_can_leave_the_queues_without_a_key_alone(broker: Server) -> None:
    harness = QueueHarness(settings_for(broker, old_queues=False))
    try:
        harness.publisher.publish(task("old"))
        harness.publisher.publish(routed("one", ONE))
        harness.work(key=ONE)
        harness.wait_for(Outcome.DONE)
        assert harness.begun == ["one"]
        assert len(read_all(harness.settings, "smalti.encode.interactive")) == 1
    finally:
        harness.stop()


def test_workers_can_share_the_work_by_priority(broker: Server) -> None:
    """One takes interactive work alone, and the other what the first has left."""
    left = {Priority.INTERACTIVE: ["one", "old"], Priority.BATCH: ["one-batch", "old-batch"]}
    for mine, others in ((Priority.INTERACTIVE, Priority.BATCH), (Priority.BATCH, Priority.INTERACTIVE)):
        harness = QueueHarness(settings_for(broker, work=mine.value))
        try:
            for priority in left if mine is Priority.INTERACTIVE else ():
                keyed, old = left[priority]
                harness.publisher.publish(routed(keyed, ONE, priority=priority))
                harness.publisher.publish(task(old, priority=priority))
            harness.work(key=ONE)
            harness.wait_for(Outcome.DONE, 2)
            assert sorted(harness.begun) == sorted(left[mine])
            if mine is Priority.INTERACTIVE:
                with celery_application(harness.settings).connection_for_read() as connection:
                    for key in (ONE, None):
                        queue = declared(queue_name(Stage.ENCODE, others, key), harness.settings)
                        _, waiting, _ = queue(connection.channel()).queue_declare(passive=True)
                        assert waiting == 1
        finally:
            harness.stop()


def test_names_of_queues() -> None:
    assert stage_queues(Stage.RANK, ONE) == [
        f"smalti.rank.{ONE}.interactive",
        "smalti.rank.interactive",
        f"smalti.rank.{ONE}.batch",
        "smalti.rank.batch",
    ]
    assert stage_queues(Stage.RANK, ONE, old=False) == [
        f"smalti.rank.{ONE}.interactive",
        f"smalti.rank.{ONE}.batch",
    ]
    assert stage_queues(Stage.RANK, ONE, work="batch") == [f"smalti.rank.{ONE}.batch", "smalti.rank.batch"]
    assert stage_queues(Stage.RANK, ONE, old=False, work="interactive") == [f"smalti.rank.{ONE}.interactive"]
    assert stage_queues(Stage.EVENTS, work="batch") == ["smalti.events", "smalti.hello"]
    assert stage_queues(Stage.RANK, None, old=False) == ["smalti.rank.interactive", "smalti.rank.batch"]
    assert stage_queues(Stage.EVENTS) == ["smalti.events", "smalti.hello"]
    assert {stage_of(name) for name in stage_queues(Stage.RANK, ONE)} == {Stage.RANK}
    for name in (
        "smalti.rank.dead",
        "smalti.rank",
        "smalti.paint.batch",
        "smalti.rank.A1.batch",
        "rank.batch",
        f"{KEYED}x",
    ):
        assert stage_of(name) is None
        if name != "smalti.rank.dead":
            with pytest.raises(ValueError, match="no queue"):
                declared(name, BrokerSettings())


def test_queues_of_the_same_priority_take_turns() -> None:
    order = InteractiveFirst(stage_queues(Stage.RANK, ONE))
    firsts = [order.consume(4)[0] for _ in range(16)]
    assert sum(name.endswith("batch") for name in firsts) == 2
    for name in stage_queues(Stage.RANK, ONE):
        assert firsts.count(name) >= 1
    assert {len(set(order.consume(4))) for _ in range(8)} == {4}


def test_a_dead_letter_of_a_keyed_queue_goes_back_to_it(queue_harness: QueueHarness) -> None:
    queue_harness.publisher.publish_text(Stage.ENCODE, KEYED, "rubbish")
    queue_harness.work(key=ONE)
    queue_harness.wait_for(Outcome.DEAD)
    queue_harness.stop()
    letters = DeadLetters(queue_harness.settings)
    publisher = BrokerPublisher(queue_harness.settings)
    for held in letters.find(LetterFilter(stages=frozenset({Stage.ENCODE}))):
        assert held.letter.origin == KEYED
        letters.replay(held, publisher)
    publisher.close()
    assert [text for text, _ in read_all(queue_harness.settings, KEYED)] == ["rubbish"]
    assert dead(queue_harness.settings) == []


def test_hellos_are_heard_and_what_is_wrong_is_kept(queue_harness: QueueHarness) -> None:
    heard: list[Hello] = []

    def hear(said: Hello) -> None:
        if said.model == "trouble":
            raise ZeroDivisionError("a bug")
        heard.append(said)

    publish = queue_harness.publisher.publish
    publish(hello())
    publish(hello(model="trouble"))
    for text in ('{"version": 4, "kind": "hello"}', '{"version": 3, "kind": "hello"}'):
        queue_harness.publisher.publish_text(Stage.EVENTS, HELLO_QUEUE, text)
    publish(hello(leaving=True))
    queue_harness.work(stage=Stage.EVENTS, hear=hear, concurrency=1)  # One after the other.
    wait_until(lambda: queue_harness.outcomes.total() == 5)
    assert heard == [hello(), hello(leaving=True)]
    assert queue_harness.outcomes == {Outcome.DONE: 2, Outcome.FAILED: 1, Outcome.EXPIRED: 1, Outcome.DEAD: 1}
    assert len(dead(queue_harness.settings, Stage.EVENTS)) == 1
    assert events(queue_harness.settings) == []


def test_valkey_keeps_the_newest_hellos(valkey: ValkeyServer) -> None:
    clear(settings_for(valkey))
    publisher, client = BrokerPublisher(settings_for(valkey)), redis.Redis(port=valkey.port)
    client.rpush(HELLO_QUEUE, *["old"] * MAX_HELLOS)
    publisher.publish(hello())
    publisher.close()
    assert client.llen(HELLO_QUEUE) == MAX_HELLOS
    assert client.lrange(HELLO_QUEUE, 0, 1)[1] == b"old"
    assert client.lrange(HELLO_QUEUE, 0, 0) != [b"old"]
    client.delete(HELLO_QUEUE)
    client.close()


def test_valkey_forgets_what_waits_for_a_revision_that_is_gone(valkey: ValkeyServer) -> None:
    clear(settings_for(valkey))
    publisher, client = BrokerPublisher(settings_for(valkey)), redis.Redis(port=valkey.port)
    publisher.publish(routed("one", ONE))
    publisher.publish(task("old"))
    held = held_queue(KEYED, 60.0)
    publisher.publish_raw(held, b"x", "application/json", "utf-8", {"task": "smalti.encode"})
    publisher.close()
    for key in (KEYED, held_set(KEYED)):
        assert UNUSED_SECONDS - 600 < int(str(client.ttl(key))) <= UNUSED_SECONDS
    assert client.ttl("smalti.encode.interactive") == -1
    client.flushdb()
    client.close()


def test_rabbitmq_is_told_how_long_to_keep_queues_and_hellos(rabbitmq: RabbitMQServer) -> None:
    names = (KEYED, "smalti.encode.batch", f"{KEYED}.held.500", HELLO_QUEUE)
    keyed, old, held, hellos = (vars(declared(name, settings_for(rabbitmq))) for name in names)
    assert keyed["queue_arguments"]["x-expires"] == UNUSED_SECONDS * 1000
    assert "x-expires" not in old["queue_arguments"]
    assert keyed["dead"].name == old["dead"].name == "smalti.encode.dead"
    assert held["queue_arguments"]["x-message-ttl"] == 500
    assert held["queue_arguments"]["x-dead-letter-routing-key"] == KEYED
    assert hellos["queue_arguments"]["x-message-ttl"] == 60_000


def test_a_queue_of_work_is_declared_once_by_each_connection(rabbitmq: RabbitMQServer) -> None:
    settings = settings_for(rabbitmq)
    assert declared(KEYED, settings).can_cache_declaration
    # RabbitMQ deletes it after a day, with what is in it, unless it is declared again.
    assert not declared(f"{KEYED}.held.500", settings).can_cache_declaration


def test_a_signed_message_cannot_be_moved_to_a_queue_of_another_key(
    valkey: ValkeyServer, tmp_path: Path
) -> None:
    clear(settings_for(valkey))
    settings = signing_as(valkey, tmp_path / "trusted", "all")
    harness = QueueHarness(settings)
    try:
        harness.publisher.publish(routed("one", ONE))
        harness.publisher.publish(routed("other", OTHER))
        client = redis.Redis(port=valkey.port)
        # kombu's entry says the queue itself, so that it must be moved with its name.
        entry = client.rpop(queue_name(Stage.ENCODE, Priority.INTERACTIVE, OTHER))
        assert isinstance(entry, bytes)
        client.lpush(KEYED, entry.replace(OTHER.encode(), ONE.encode()))
        client.close()
        harness.work(key=ONE)
        harness.wait_for(Outcome.DONE)
        harness.wait_for(Outcome.DEAD)
        assert harness.begun == ["one"]
        [(_, headers)] = gather(lambda: dead(settings), bool)
        assert "was signed for the queue" in headers[REASON]
    finally:
        harness.stop()


def test_a_message_that_was_held_back_keeps_its_signature(valkey: ValkeyServer, tmp_path: Path) -> None:
    clear(settings_for(valkey))
    settings = signing_as(valkey, tmp_path / "trusted", "gateway")
    harness = QueueHarness(settings)
    tries: list[float] = []

    def refuse_once(delivery: Delivery) -> Iterable[Message]:
        tries.append(time.monotonic())
        if len(tries) == 1:
            raise HoldBackError("not yet")
        return []

    try:
        harness.work(refuse_once, key=ONE)
        harness.publisher.publish(routed("one", ONE))
        harness.wait_for(Outcome.DONE)
        assert harness.outcomes == {Outcome.HELD: 1, Outcome.DONE: 1}
    finally:
        harness.stop()


@pytest.mark.parametrize(
    ("signer", "stage", "allowed"),
    [
        ("encoder", "encode", True),
        ("refiner", "refine", True),
        ("all", "rank", True),
        ("encoder", "decode", False),
        ("gateway", "encode", False),
    ],
)
def test_a_worker_says_hello_for_its_own_stage(signer: str, stage: str, allowed: bool) -> None:
    said = hello(stage=stage)
    if allowed:
        check_sender(signer, said)
    else:
        with pytest.raises(Exception, match="must not send"):
            check_sender(signer, said)
