"""The queues, on real brokers: what becomes of a message, by what its handler does."""

import gc
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import SecretStr

from harness.queue import (
    HARMLESS_WARNINGS,
    WAIT,
    QueueHarness,
    clear,
    dead,
    events,
    gather,
    read_all,
    settings_for,
    task,
    wait_until,
)
from harness.servers import ValkeyServer
from smalti.errors import InvalidInputError
from smalti.messages import (
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
from smalti.queue.delivery import WHY_DEAD
from smalti.storage import ObjectRef

pytestmark = [pytest.mark.filterwarnings(each) for each in HARMLESS_WARNINGS]


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left_to_others() -> Iterator[None]:
    yield
    gc.collect()


def test_message_is_handled_and_what_follows_is_sent(stand: QueueHarness) -> None:
    sent = [task(f"j{number}") for number in range(10)]
    for message in sent[:5]:
        stand.publisher.publish(message)

    def handle(delivery: Delivery) -> Iterable[Message]:
        message = delivery.message
        assert isinstance(message, EncodeTask)
        ref = ObjectRef(key=message.keys.encoding, sha256="0" * 64)
        return [*message.next(ref), message.done(ref)]

    consumption = stand.work(handle)
    for message in sent[5:]:
        stand.publisher.publish(message)
    stand.wait_for(Outcome.DONE, 10)
    assert stand.outcomes == {Outcome.DONE: 10}
    assert sorted(stand.begun) == [f"j{number}" for number in range(10)]
    assert consumption.stop(5)
    assert not consumption.alive
    assert {event.job for event in events(stand.settings)} == set(stand.begun)
    generates = [parse(text) for text, _ in read_all(stand.settings, "generate.interactive")]
    assert {message.job for message in generates} == set(stand.begun)
    assert read_all(stand.settings, "encode.interactive") == []


def test_interactive_work_goes_first_and_batch_work_is_not_forgotten(stand: QueueHarness) -> None:
    for number in range(30):
        stand.publisher.publish(task(f"b{number}", priority=Priority.BATCH))
    for number in range(30):
        stand.publisher.publish(task(f"i{number}"))

    def handle(delivery: Delivery) -> Iterable[Message]:
        time.sleep(0.05)
        return []

    stand.work(handle, concurrency=1)
    stand.wait_for(Outcome.DONE, 60)
    first = stand.begun[:24]
    kinds = Counter(name[0] for name in first)
    # Every eighth turn is the batch work's. RabbitMQ has to be told that a message is done before it gives the next
    # one of its queue, so that there may be nothing but batch work at hand for a moment.
    assert 2 <= kinds["b"] <= 7, first
    for kind in "ib":
        order = [int(name[1:]) for name in stand.begun if name[0] == kind]
        assert order == sorted(order)


def test_passing_failure_is_tried_again_and_given_up_in_the_end(stand: QueueHarness) -> None:
    attempts: list[int] = []

    def handle(delivery: Delivery) -> Iterable[Message]:
        attempts.append(delivery.message.attempt)
        if delivery.message.job == "j1" and delivery.message.attempt == 3:
            return []
        raise RetryError("the store is away")

    stand.work(handle)
    stand.publisher.publish(task("j1"))
    stand.wait_for(Outcome.DONE)
    assert attempts == [1, 2, 3]
    stand.publisher.publish(task("j2", attempt=4))
    stand.wait_for(Outcome.DEAD)
    assert attempts == [1, 2, 3, 4, 5]
    (event,) = events(stand.settings)
    assert isinstance(event, Failed)
    assert (event.job, event.stage, event.reason, event.permanent) == ("j2", "encode", "exhausted", True)
    assert "the store is away" in event.detail
    ((text, headers),) = dead(stand.settings)
    assert parse(text).job == "j2"
    assert "the store is away" in headers[WHY_DEAD]


def test_bug_of_a_handler_is_a_passing_failure(stand: QueueHarness, caplog: pytest.LogCaptureFixture) -> None:
    def handle(delivery: Delivery) -> Iterable[Message]:
        if delivery.message.attempt < 2:
            raise ZeroDivisionError("a bug")
        return []

    stand.work(handle)
    stand.publisher.publish(task())
    stand.wait_for(Outcome.DONE)
    assert stand.outcomes == {Outcome.RETRIED: 1, Outcome.DONE: 1}
    assert "ZeroDivisionError: a bug" in caplog.text


def test_permanent_failure_is_told_once(stand: QueueHarness) -> None:
    def handle(delivery: Delivery) -> Iterable[Message]:
        if delivery.message.job == "j1":
            raise PermanentError(FailureReason.MODEL, "this worker has another model")
        raise InvalidInputError("prompt", "it is empty")

    stand.work(handle)
    stand.publisher.publish(task("j1"))
    stand.publisher.publish(task("j2"))
    stand.wait_for(Outcome.FAILED, 2)
    found = {event.job: event for event in events(stand.settings) if isinstance(event, Failed)}
    assert {job: event.reason for job, event in found.items()} == {"j1": "model", "j2": "invalid"}
    assert all(event.permanent for event in found.values())
    assert stand.begun == ["j1", "j2"] or stand.begun == ["j2", "j1"]
    assert dead(stand.settings) == []


def test_expired_message_is_not_worked_on(stand: QueueHarness) -> None:
    stand.publisher.publish(task(expires=time.time() - 1))
    stand.work()
    stand.wait_for(Outcome.EXPIRED)
    assert stand.begun == []
    (event,) = events(stand.settings)
    assert isinstance(event, Failed)
    assert event.reason is FailureReason.EXPIRED


def test_what_cannot_be_read_is_kept_and_the_worker_lives(stand: QueueHarness) -> None:
    publisher = stand.publisher
    stand.work()
    queue = "encode.interactive"
    good = task().to_json()
    texts = {
        "no JSON object": "rubbish",
        "the most is": good + " " * 70_000,
        "encode.prompt": good.replace('"a cat"', '""'),
        "is in the queue of encode": task().done().to_json(),
        "has version 99": good.replace('"version":1', '"version":99'),
    }
    for text in texts.values():
        publisher.publish_text(Stage.ENCODE, queue, text)
    publisher.publish_text(Stage.RANK, queue, good)  # A Celery task that is not of this queue.
    publisher.publish_raw(queue, b"\x00\xff", "application/x-python-serialize", "binary", {})
    publisher.publish_raw(
        queue, b"no json", "application/json", "utf-8", {"task": "smalti.encode", "id": "1"}
    )
    publisher.publish_raw(queue, b"123", "application/json", "utf-8", {"task": "smalti.encode", "id": "2"})
    publisher.publish_raw(queue, b"xyz", "application/data", "binary", {"task": "smalti.encode", "id": "3"})
    publisher.publish_raw(queue, b"{}", "application/json", "utf-8", {})
    found = gather(lambda: dead(stand.settings), lambda found: len(found) >= len(texts) + 6)
    reasons = [headers[WHY_DEAD] for _, headers in found]
    for problem in texts:
        assert any(problem in reason for reason in reasons), (problem, reasons)
    assert set(texts.values()) <= {text for text, _ in found}
    publisher.publish(task("good"))
    stand.wait_for(Outcome.DONE)
    assert stand.begun == ["good"]


class Intruder:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.file,)


def test_pickled_message_is_not_unpickled(stand: QueueHarness, tmp_path: Path) -> None:
    body = pickle.dumps(((Intruder(tmp_path / "intruded"),), {}, {}))
    headers = {"task": "smalti.encode", "id": "1", "lang": "py"}
    stand.work()
    stand.publisher.publish_raw(
        "encode.interactive", body, "application/x-python-serialize", "binary", headers
    )
    ((_, why),) = gather(lambda: dead(stand.settings), bool)
    assert "not accepted" in why[WHY_DEAD]
    assert list(tmp_path.iterdir()) == []
    pickle.loads(body)
    assert [path.name for path in tmp_path.iterdir()] == ["intruded"]


def test_rubbish_in_valkey_does_not_end_the_worker(valkey: ValkeyServer) -> None:
    clear(settings_for(valkey))
    stand = QueueHarness(settings_for(valkey))
    try:
        stand.work()
        client = redis.Redis(port=valkey.port)
        for rubbish in (b"\x00\xff", b"rubbish", b"{}", b"[]", b'{"body": 1}'):
            client.lpush("encode.interactive", rubbish)
        client.close()
        stand.publisher.publish(task("good"))
        stand.wait_for(Outcome.DONE)
    finally:
        stand.stop()


def test_message_for_newer_services_waits_for_them(stand: QueueHarness) -> None:
    newer = task().to_json().replace('"version":1', '"version":2')
    stand.publisher.publish_text(Stage.ENCODE, "encode.interactive", newer)
    stand.work()
    stand.wait_for(Outcome.DEAD)
    assert stand.outcomes[Outcome.RETRIED] == stand.settings.deliveries - 1
    assert [text for text, _ in dead(stand.settings)] == [newer]
    assert events(stand.settings) == []


def test_same_work_is_done_once_at_a_time(stand: QueueHarness) -> None:
    go = threading.Event()

    def handle(delivery: Delivery) -> Iterable[Message]:
        assert go.wait(WAIT)
        return [StageDone(**{**fields(delivery.message), "stage": Stage.ENCODE, "objects": ()})]

    stand.work(handle)
    for _ in range(3):
        stand.publisher.publish(task("same"))
    stand.publisher.publish(task("other"))
    wait_until(lambda: "other" in stand.begun)
    go.set()
    stand.wait_for(Outcome.DUPLICATE, 2)
    stand.wait_for(Outcome.DONE, 2)
    assert sorted(stand.begun) == ["other", "same"]
    assert len(events(stand.settings)) == 2


def fields(message: Message) -> dict[str, Any]:
    return {name: getattr(message, name) for name in ("job", "attempt", "lease", "expires")}


def test_drain_finishes_what_runs_and_leaves_the_rest(stand: QueueHarness) -> None:
    def handle(delivery: Delivery) -> Iterable[Message]:
        delivery.draining.wait(WAIT)
        time.sleep(0.3)
        return [delivery.message.done()]  # type: ignore[union-attr]

    consumption = stand.work(handle, concurrency=2)
    for number in range(6):
        stand.publisher.publish(task(f"j{number}"))
    wait_until(lambda: consumption.running == 2)
    assert consumption.stop(10)
    assert stand.outcomes[Outcome.DONE] == 2
    assert {event.job for event in events(stand.settings)} == set(stand.begun)
    waiting = [parse(text) for text, _ in read_all(stand.settings, "encode.interactive")]
    assert {message.job for message in waiting} | set(stand.begun) == {f"j{number}" for number in range(6)}
    assert len(waiting) == 4
    assert all(message.attempt == 1 for message in waiting)


def test_drain_gives_back_what_would_take_too_long(stand: QueueHarness) -> None:
    release = threading.Event()

    def handle(delivery: Delivery) -> Iterable[Message]:
        if delivery.message.job == "polite":
            delivery.draining.wait(WAIT)
            raise GiveBackError("it would take too long")
        release.wait(WAIT)
        return []

    consumption = stand.work(handle, concurrency=2)
    stand.publisher.publish(task("polite"))
    stand.publisher.publish(task("stubborn"))
    wait_until(lambda: consumption.running == 2)
    began = time.monotonic()
    assert not consumption.stop(0.5)
    assert time.monotonic() - began < 10
    gather(
        lambda: [parse(text).job for text, _ in read_all(stand.settings, "encode.interactive")],
        lambda found: set(found) == {"polite", "stubborn"},
    )
    release.set()


def test_process_takes_messages_once(stand: QueueHarness) -> None:
    stand.work()
    with pytest.raises(RuntimeError, match="takes messages already"):
        consume(Stage.RANK, lambda _: [], concurrency=1, publisher=stand.publisher, settings=stand.settings)


def test_other_broker_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="SMALTI_BROKER_URL"):
        celery_application(BrokerSettings(url=SecretStr("sqs://user:secret@host")))
    assert "very-secret" not in repr(BrokerSettings(url=SecretStr("redis://:very-secret@host")))
