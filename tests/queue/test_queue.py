"""Handling of messages on real brokers."""

import logging
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import SecretStr

from harness.queue import (
    HARMLESS_WARNINGS,
    QueueHarness,
    clear,
    dead,
    events,
    gather,
    read_all,
    settings_for,
    task,
)
from harness.servers import ValkeyServer
from harness.waiting import WAIT, wait_until
from smalti.errors import InvalidInputError, StoreUnavailableError
from smalti.messages import (
    MAX_CLOCK_SKEW_SECONDS,
    EncodeTask,
    Failed,
    FailureReason,
    Message,
    Stage,
    StageDone,
    parse,
)
from smalti.parameters import Priority
from smalti.queue import (
    BrokerSettings,
    Delivery,
    GiveBackError,
    Outcome,
    PermanentError,
    RetryError,
    celery_application,
    consume,
)
from smalti.queue.dead.headers import REASON as DEAD_REASON_HEADER
from smalti.storage import ObjectRef, content_key

pytestmark = [pytest.mark.filterwarnings(each) for each in HARMLESS_WARNINGS]


def test_message_is_handled_and_its_followers_are_sent(queue_harness: QueueHarness) -> None:
    sent = [task(f"j{number}") for number in range(10)]
    for message in sent[:5]:
        queue_harness.publisher.publish(message)

    def handle(delivery: Delivery) -> Iterable[Message]:
        message = delivery.message
        assert isinstance(message, EncodeTask)
        ref = ObjectRef(key=content_key(message.keys.encoding, "0" * 64), sha256="0" * 64)
        return [*message.next(ref, message.prompt), message.done(ref)]

    consumer = queue_harness.work(handle)
    for message in sent[5:]:
        queue_harness.publisher.publish(message)
    queue_harness.wait_for(Outcome.DONE, 10)
    assert queue_harness.outcomes == {Outcome.DONE: 10}
    assert sorted(queue_harness.begun) == [f"j{number}" for number in range(10)]
    assert consumer.stop(5)
    assert not consumer.alive
    assert {event.job for event in events(queue_harness.settings)} == set(queue_harness.begun)
    generates = [parse(text) for text, _ in read_all(queue_harness.settings, "smalti.generate.interactive")]
    assert {message.job for message in generates} == set(queue_harness.begun)
    assert read_all(queue_harness.settings, "smalti.encode.interactive") == []


def test_interactive_work_goes_first_and_batch_work_does_not_starve(queue_harness: QueueHarness) -> None:
    for number in range(30):
        queue_harness.publisher.publish(task(f"b{number}", priority=Priority.BATCH))
    for number in range(30):
        queue_harness.publisher.publish(task(f"i{number}"))

    def handle(delivery: Delivery) -> Iterable[Message]:
        time.sleep(0.05)
        return []

    queue_harness.work(handle, concurrency=1)
    queue_harness.wait_for(Outcome.DONE, 60)
    first = queue_harness.begun[:24]
    kinds = Counter(name[0] for name in first)
    # Every eighth turn goes to batch work. RabbitMQ delivers the next message of a queue only after an acknowledgement,
    # so there may be nothing but batch work for a moment.
    assert 2 <= kinds["b"] <= 7, first
    for kind in "ib":
        order = [int(name[1:]) for name in queue_harness.begun if name[0] == kind]
        assert order == sorted(order)


def test_transient_failure_is_retried_until_attempts_run_out(queue_harness: QueueHarness) -> None:
    attempts: list[int] = []

    def handle(delivery: Delivery) -> Iterable[Message]:
        attempts.append(delivery.message.attempt)
        if delivery.message.job == "j1" and delivery.message.attempt == 3:
            return []
        raise RetryError("the store is away")

    queue_harness.work(handle)
    queue_harness.publisher.publish(task("j1"))
    queue_harness.wait_for(Outcome.DONE)
    assert attempts == [1, 2, 3]
    queue_harness.publisher.publish(task("j2", attempt=4))
    queue_harness.wait_for(Outcome.DEAD)
    assert attempts == [1, 2, 3, 4, 5]
    (event,) = events(queue_harness.settings)
    assert isinstance(event, Failed)
    assert (event.job, event.stage, event.reason, event.permanent) == ("j2", "encode", "exhausted", True)
    assert "the store is away" in event.detail
    ((text, headers),) = dead(queue_harness.settings)
    assert parse(text).job == "j2"
    assert "the store is away" in headers[DEAD_REASON_HEADER]


def test_unexpected_exception_is_a_transient_failure(
    queue_harness: QueueHarness, caplog: pytest.LogCaptureFixture
) -> None:
    def handle(delivery: Delivery) -> Iterable[Message]:
        if delivery.message.attempt < 2:
            raise ZeroDivisionError("a bug")
        return []

    queue_harness.work(handle)
    queue_harness.publisher.publish(task())
    queue_harness.wait_for(Outcome.DONE)
    assert queue_harness.outcomes == {Outcome.RETRIED: 1, Outcome.DONE: 1}
    assert "ZeroDivisionError: a bug" in caplog.text


@pytest.mark.parametrize("error", [KeyError("/srv/model"), StoreUnavailableError("no route to 10.0.0.7")])
def test_others_are_not_told_the_words_of_a_failure(
    queue_harness: QueueHarness, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def handle(delivery: Delivery) -> Iterable[Message]:
        raise error

    queue_harness.work(handle)
    queue_harness.publisher.publish(task(attempt=5))
    queue_harness.wait_for(Outcome.DEAD)
    (event,) = events(queue_harness.settings)
    assert isinstance(event, Failed)
    assert str(error) not in event.detail
    error_id = event.detail.rpartition(" ")[2]
    assert any(error_id in line and str(error) in line for line in _records(caplog))


def _records(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Returns the records of the log, each with its traceback."""
    formatter = logging.Formatter()
    return [formatter.format(record) for record in caplog.records]


def test_permanent_failure_is_reported_once(queue_harness: QueueHarness) -> None:
    def handle(delivery: Delivery) -> Iterable[Message]:
        if delivery.message.job == "j1":
            raise PermanentError(FailureReason.MODEL, "this worker has another model")
        raise InvalidInputError("prompt", "it is empty")

    queue_harness.work(handle)
    queue_harness.publisher.publish(task("j1"))
    queue_harness.publisher.publish(task("j2"))
    queue_harness.wait_for(Outcome.FAILED, 2)
    found = {event.job: event for event in events(queue_harness.settings) if isinstance(event, Failed)}
    assert {job: event.reason for job, event in found.items()} == {"j1": "model", "j2": "invalid"}
    assert all(event.permanent for event in found.values())
    assert queue_harness.begun == ["j1", "j2"] or queue_harness.begun == ["j2", "j1"]
    assert dead(queue_harness.settings) == []


def test_expired_message_is_not_handled(queue_harness: QueueHarness) -> None:
    queue_harness.publisher.publish(task(expires=time.time() - MAX_CLOCK_SKEW_SECONDS - 1))
    queue_harness.work()
    queue_harness.wait_for(Outcome.EXPIRED)
    assert queue_harness.begun == []
    (event,) = events(queue_harness.settings)
    assert isinstance(event, Failed)
    assert event.reason is FailureReason.EXPIRED


def test_unreadable_messages_are_dead_lettered_and_the_worker_survives(queue_harness: QueueHarness) -> None:
    publisher = queue_harness.publisher
    queue_harness.work()
    queue = "smalti.encode.interactive"
    good = task().to_json()
    texts = {
        "must be a JSON object": "rubbish",
        "the limit is": good + " " * 70_000,
        "encode.prompt": good.replace('"a cat"', '""'),
        "is in the queue of encode": task().done().to_json(),
    }
    for text in texts.values():
        publisher.publish_text(Stage.ENCODE, queue, text)
    publisher.publish_text(Stage.RANK, queue, good)  # A Celery task of another queue.
    publisher.publish_raw(queue, b"\x00\xff", "application/x-python-serialize", "binary", {})
    publisher.publish_raw(
        queue, b"no json", "application/json", "utf-8", {"task": "smalti.encode", "id": "1"}
    )
    publisher.publish_raw(queue, b"123", "application/json", "utf-8", {"task": "smalti.encode", "id": "2"})
    publisher.publish_raw(queue, b"xyz", "application/data", "binary", {"task": "smalti.encode", "id": "3"})
    publisher.publish_raw(queue, b"{}", "application/json", "utf-8", {})
    found = gather(lambda: dead(queue_harness.settings), lambda found: len(found) >= len(texts) + 6)
    reasons = [headers[DEAD_REASON_HEADER] for _, headers in found]
    for problem in texts:
        assert any(problem in reason for reason in reasons), (problem, reasons)
    assert set(texts.values()) <= {text for text, _ in found}
    publisher.publish(task("good"))
    queue_harness.wait_for(Outcome.DONE)
    assert queue_harness.begun == ["good"]


class Intruder:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.file,)


def test_pickled_message_is_not_unpickled(queue_harness: QueueHarness, tmp_path: Path) -> None:
    body = pickle.dumps(((Intruder(tmp_path / "intruded"),), {}, {}))
    headers = {"task": "smalti.encode", "id": "1", "lang": "py"}
    queue_harness.work()
    queue_harness.publisher.publish_raw(
        "smalti.encode.interactive", body, "application/x-python-serialize", "binary", headers
    )
    ((_, why),) = gather(lambda: dead(queue_harness.settings), bool)
    assert "not accepted" in why[DEAD_REASON_HEADER]
    assert list(tmp_path.iterdir()) == []
    pickle.loads(body)
    assert [path.name for path in tmp_path.iterdir()] == ["intruded"]


def test_worker_survives_rubbish_in_valkey(valkey: ValkeyServer) -> None:
    clear(settings_for(valkey))
    queue_harness = QueueHarness(settings_for(valkey))
    try:
        queue_harness.work()
        client = redis.Redis(port=valkey.port)
        for rubbish in (b"\x00\xff", b"rubbish", b"{}", b"[]", b'{"body": 1}'):
            client.lpush("smalti.encode.interactive", rubbish)
        client.close()
        queue_harness.publisher.publish(task("good"))
        queue_harness.wait_for(Outcome.DONE)
    finally:
        queue_harness.stop()


def test_duplicate_deliveries_run_once(queue_harness: QueueHarness) -> None:
    go = threading.Event()

    def handle(delivery: Delivery) -> Iterable[Message]:
        assert go.wait(WAIT)
        return [StageDone(**{**fields(delivery.message), "stage": Stage.ENCODE, "objects": ()})]

    queue_harness.work(handle)
    for _ in range(3):
        queue_harness.publisher.publish(task("same"))
    queue_harness.publisher.publish(task("other"))
    wait_until(lambda: "other" in queue_harness.begun)
    go.set()
    queue_harness.wait_for(Outcome.DUPLICATE, 2)
    queue_harness.wait_for(Outcome.DONE, 2)
    assert sorted(queue_harness.begun) == ["other", "same"]
    assert len(events(queue_harness.settings)) == 2


def fields(message: Message) -> dict[str, Any]:
    return {name: getattr(message, name) for name in ("job", "attempt", "lease", "expires")}


def test_drain_finishes_running_messages_and_leaves_the_rest(queue_harness: QueueHarness) -> None:
    def handle(delivery: Delivery) -> Iterable[Message]:
        delivery.draining.wait(WAIT)
        time.sleep(0.3)
        return [delivery.message.done()]  # type: ignore[operator, union-attr]

    consumer = queue_harness.work(handle, concurrency=2)
    for number in range(6):
        queue_harness.publisher.publish(task(f"j{number}"))
    wait_until(lambda: consumer.running == 2)
    assert consumer.stop(10)
    assert queue_harness.outcomes[Outcome.DONE] == 2
    assert {event.job for event in events(queue_harness.settings)} == set(queue_harness.begun)
    waiting = [parse(text) for text, _ in read_all(queue_harness.settings, "smalti.encode.interactive")]
    assert {message.job for message in waiting} | set(queue_harness.begun) == {
        f"j{number}" for number in range(6)
    }
    assert len(waiting) == 4
    assert all(message.attempt == 1 for message in waiting)


def test_drain_returns_messages_that_would_take_too_long(queue_harness: QueueHarness) -> None:
    release = threading.Event()

    def handle(delivery: Delivery) -> Iterable[Message]:
        if delivery.message.job == "polite":
            delivery.draining.wait(WAIT)
            raise GiveBackError("it would take too long")
        release.wait(WAIT)
        return []

    consumer = queue_harness.work(handle, concurrency=2)
    queue_harness.publisher.publish(task("polite"))
    queue_harness.publisher.publish(task("stubborn"))
    wait_until(lambda: consumer.running == 2)
    began = time.monotonic()
    assert not consumer.stop(0.5)
    assert time.monotonic() - began < 10
    gather(
        lambda: [
            parse(text).job for text, _ in read_all(queue_harness.settings, "smalti.encode.interactive")
        ],
        lambda found: set(found) == {"polite", "stubborn"},
    )
    release.set()


def test_process_has_one_consumer(queue_harness: QueueHarness) -> None:
    queue_harness.work()
    publisher, settings = queue_harness.publisher, queue_harness.settings
    with pytest.raises(RuntimeError, match="has a consumer already"):
        consume(Stage.RANK, lambda _: [], concurrency=1, publisher=publisher, settings=settings)


def test_unsupported_broker_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="SMALTI_BROKER_URL"):
        celery_application(BrokerSettings(url=SecretStr("sqs://user:secret@host")))
    for url in (
        "redis://host/jobs",
        "redis://host/0/1",
        "rediss://host/-1",
        "redis://host:port",
        "redis://host:99999/0",
    ):
        with pytest.raises(InvalidInputError, match=r"^SMALTI_BROKER_URL: "):
            celery_application(BrokerSettings(url=SecretStr(url)))
    for url in (
        "redis://localhost",
        "redis://[::1]:6379/",
        "redis://127.0.0.1:6379/15",
        "amqp://127.0.0.1/jobs",
    ):
        celery_application(BrokerSettings(url=SecretStr(url)))
    assert "very-secret" not in repr(BrokerSettings(url=SecretStr("redis://:very-secret@host")))
