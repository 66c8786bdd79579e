"""The queues, on real brokers: what is promised of a message, whatever happens to workers and broker."""

import contextlib
import datetime
import gc
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from smalti.engines.requests import Priority
from smalti.errors import InvalidInputError
from smalti.messages import (
    Chunk,
    EncodeTask,
    Failed,
    FailureReason,
    Message,
    Stage,
    StageDone,
    dead_queue_name,
    parse,
)
from smalti.parameters import SamplingParameters
from smalti.queue import (
    BrokerSettings,
    BrokerUnavailableError,
    Consumption,
    Delivery,
    GiveBackError,
    Outcome,
    PermanentError,
    Publisher,
    RetryError,
    celery_application,
    consume,
)
from smalti.queue.application import all_queues
from smalti.queue.delivery import WHY_DEAD
from smalti.storage import LocalStore, ObjectRef
from smalti.testing.servers import RabbitMQServer, Server, ValkeyServer

Item = TypeVar("Item")

WORKER = Path(__file__).parent / "queue_worker.py"
WAIT = 60.0
"""Seconds within which anything happens, on a machine that does other things as well."""

pytestmark = [
    # What Celery says of a reconnect; it concerns pools that can end a task.
    pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning"),
    # py-amqp leaves the socket of a connection that broke off while it was made to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left_to_others() -> Iterator[None]:
    yield
    gc.collect()


# Where RabbitMQ is not installed, CI fails, and anybody else tests what they have.
BROKERS = ["valkey", "rabbitmq"] if RabbitMQServer.installed() or "CI" in os.environ else ["valkey"]


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest) -> Server:
    """A broker of each kind, without queues."""
    server: Server = request.getfixturevalue(request.param)
    if not server.running:
        server.start()
    clear(settings_for(server))
    return server


def settings_for(server: Server, **changes: Any) -> BrokerSettings:
    quick: dict[str, Any] = {
        "timeout": 5.0,
        "visibility_timeout": 6.0,
        "retry_first": 0.05,
        "retry_longest": 0.2,
        "drain": 10.0,
    }
    return BrokerSettings(url=SecretStr(server.url), **{**quick, **changes})


def patient(settings: BrokerSettings) -> BrokerSettings:
    """For the test's own looks into the queues."""
    return settings.model_copy(update={"timeout": WAIT})


def clear(settings: BrokerSettings) -> None:
    with celery_application(patient(settings)).connection_for_write() as connection:
        for queue in all_queues(settings).values():
            # Not removed: RabbitMQ 3.10 does not always recover a queue that was removed and made again.
            bound = queue(connection.channel())
            bound.declare()
            bound.purge()
        if settings.url.get_secret_value().startswith("redis"):
            connection.channel().client.flushdb()


def read_all(settings: BrokerSettings, queue: str) -> list[tuple[str, dict[str, Any]]]:
    """Takes what is in a queue: each message's text, or body where it is no task, and its headers."""
    found = []
    with celery_application(patient(settings)).connection_for_write() as connection:
        bound = all_queues(settings)[queue](connection.channel())
        bound.declare()
        while message := bound.get(accept=["application/json", "application/data"], no_ack=True):
            body = message.body
            with contextlib.suppress(Exception):
                body = message.decode()[0][0]
            found.append((body, dict(message.headers)))
    return found


def events(settings: BrokerSettings) -> list[Message]:
    return [parse(text) for text, _ in read_all(settings, "events")]


def dead(settings: BrokerSettings, stage: Stage = Stage.ENCODE) -> list[tuple[str, dict[str, Any]]]:
    return read_all(settings, dead_queue_name(stage))


def task(job: str = "j1", prompt: str = "a cat", **changes: Any) -> EncodeTask:
    fields: dict[str, Any] = {
        "job": job,
        "expires": time.time() + 3600,
        "model": "tiny",
        "revision": "r",
        "prompt": prompt,
        "seed": 1,
        "sampling": SamplingParameters(),
        "chunks": (Chunk(chunk=0, candidates=(0, 1)),),
    }
    return EncodeTask(**{**fields, **changes})


def wait_until(condition: Callable[[], Any], seconds: float = WAIT) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def gather(read: Callable[[], Iterable[Item]], enough: Callable[[list[Item]], bool]) -> list[Item]:
    """Reads again and again until what was found is enough."""
    found: list[Item] = []

    def look() -> bool:
        found.extend(read())
        return enough(found)

    wait_until(look)
    return found


class Stand:
    """A publisher and a worker in this process, and what became of the messages."""

    def __init__(self, settings: BrokerSettings) -> None:
        self.settings = settings
        self.publisher = Publisher(settings)
        self.begun: list[str] = []
        self.outcomes: Counter[Outcome] = Counter()
        self.consumption: Consumption | None = None

    def work(
        self,
        handler: Callable[[Delivery], Iterable[Message]] | None = None,
        *,
        concurrency: int = 4,
        stage: Stage = Stage.ENCODE,
    ) -> Consumption:
        def handle(delivery: Delivery) -> Iterable[Message]:
            self.begun.append(delivery.message.job)
            if handler:
                return handler(delivery)
            assert isinstance(delivery.message, EncodeTask)
            return [delivery.message.done()]

        self.consumption = consume(
            stage,
            handle,
            concurrency=concurrency,
            publisher=self.publisher,
            settings=self.settings,
            observer=lambda outcome, message: self.outcomes.update([outcome]),
        )
        self.consumption.start()
        assert self.consumption.wait_until_ready(WAIT)
        return self.consumption

    def wait_for(self, outcome: Outcome, count: int = 1) -> None:
        wait_until(lambda: self.outcomes[outcome] >= count)

    def stop(self) -> None:
        if self.consumption:
            self.consumption.stop(5)
        self.publisher.close()


@pytest.fixture
def stand(broker: Server) -> Iterator[Stand]:
    """A publisher, and a worker once it is asked for."""
    made = Stand(settings_for(broker))
    yield made
    made.stop()


def test_message_is_handled_and_what_follows_is_sent(stand: Stand) -> None:
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


def test_interactive_work_goes_first_and_batch_work_is_not_forgotten(stand: Stand) -> None:
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


def test_passing_failure_is_tried_again_and_given_up_in_the_end(stand: Stand) -> None:
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


def test_bug_of_a_handler_is_a_passing_failure(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    def handle(delivery: Delivery) -> Iterable[Message]:
        if delivery.message.attempt < 2:
            raise ZeroDivisionError("a bug")
        return []

    stand.work(handle)
    stand.publisher.publish(task())
    stand.wait_for(Outcome.DONE)
    assert stand.outcomes == {Outcome.RETRIED: 1, Outcome.DONE: 1}
    assert "ZeroDivisionError: a bug" in caplog.text


def test_permanent_failure_is_told_once(stand: Stand) -> None:
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


def test_expired_message_is_not_worked_on(stand: Stand) -> None:
    stand.publisher.publish(task(expires=time.time() - 1))
    stand.work()
    stand.wait_for(Outcome.EXPIRED)
    assert stand.begun == []
    (event,) = events(stand.settings)
    assert isinstance(event, Failed)
    assert event.reason is FailureReason.EXPIRED


def test_what_cannot_be_read_is_kept_and_the_worker_lives(stand: Stand) -> None:
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


def test_rubbish_in_valkey_does_not_end_the_worker(valkey: ValkeyServer) -> None:
    clear(settings_for(valkey))
    stand = Stand(settings_for(valkey))
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


def test_message_for_newer_services_waits_for_them(stand: Stand) -> None:
    newer = task().to_json().replace('"version":1', '"version":2')
    stand.publisher.publish_text(Stage.ENCODE, "encode.interactive", newer)
    stand.work()
    stand.wait_for(Outcome.DEAD)
    assert stand.outcomes[Outcome.RETRIED] == stand.settings.deliveries - 1
    assert [text for text, _ in dead(stand.settings)] == [newer]
    assert events(stand.settings) == []


def test_same_work_is_done_once_at_a_time(stand: Stand) -> None:
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


def test_drain_finishes_what_runs_and_leaves_the_rest(stand: Stand) -> None:
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


def test_drain_gives_back_what_would_take_too_long(stand: Stand) -> None:
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


def test_process_takes_messages_once(stand: Stand) -> None:
    stand.work()
    with pytest.raises(RuntimeError, match="takes messages already"):
        consume(Stage.RANK, lambda _: [], concurrency=1, publisher=stand.publisher, settings=stand.settings)


def test_sender_is_told_in_time_that_the_broker_is_away(broker: Server) -> None:
    publisher = Publisher(settings_for(broker, timeout=2.0))
    publisher.publish(task("before"), timeout=WAIT)
    broker.pause()
    try:
        for timeout in (0.5, 2.0):
            began = time.monotonic()
            with pytest.raises(BrokerUnavailableError, match=f"has not confirmed a message in {timeout:g} s"):
                publisher.publish(task("paused"), timeout=timeout)
            assert time.monotonic() - began < timeout + 1
        assert all(publisher.offer(task("offered")) for _ in range(60))
        assert not all(publisher.offer(task("offered")) for _ in range(60))
    finally:
        broker.resume()
    publisher.publish(task("after"), timeout=WAIT)
    broker.kill()
    began = time.monotonic()
    with pytest.raises(BrokerUnavailableError):
        publisher.publish(task("down"))
    assert time.monotonic() - began < 3
    broker.start()
    publisher.publish(task("again"), timeout=WAIT)
    publisher.close()
    found = {parse(text).job for text, _ in read_all(publisher.settings, "encode.interactive")}
    assert {"before", "after", "again"} <= found
    assert "down" not in found


def test_broker_that_is_killed_or_hangs_loses_nothing(stand: Stand, broker: Server) -> None:
    jobs = itertools.count()
    accepted: set[str] = set()
    finished: set[str] = set()

    def handle(delivery: Delivery) -> Iterable[Message]:
        time.sleep(0.05)
        finished.add(delivery.message.job)
        return [delivery.message.done()]  # type: ignore[union-attr]

    def send(count: int) -> None:
        for _ in range(count):
            message = task(f"j{next(jobs)}")
            with contextlib.suppress(BrokerUnavailableError):
                stand.publisher.publish(message)
                accepted.add(message.job)

    consumption = stand.work(handle, concurrency=2)
    send(20)
    broker.kill()
    send(1)
    broker.start()
    send(20)
    broker.pause()
    time.sleep(stand.settings.timeout + 1)
    broker.resume()
    send(20)
    wait_until(lambda: accepted <= finished)
    assert len(accepted) >= 60 - 2
    assert consumption.alive
    gather(lambda: [event.job for event in events(stand.settings)], lambda told: accepted <= set(told))
    assert dead(stand.settings) == []


def test_queue_that_was_removed_is_made_again(broker: Server) -> None:
    settings = settings_for(broker)
    publisher = Publisher(settings)
    publisher.publish_text(Stage.RANK, "rank.batch", "before")
    with celery_application(patient(settings)).connection_for_write() as connection:
        connection.channel().queue_purge("rank.batch")  # Valkey has no queues but what is in them.
        connection.channel().queue_delete("rank.batch")
    publisher.publish_text(Stage.RANK, "rank.batch", "after", timeout=WAIT)
    publisher.close()
    assert [text for text, _ in read_all(settings, "rank.batch")] == ["after"]


class WorkerProcess:
    """A worker in a process of its own, and what it says."""

    def __init__(self, settings: BrokerSettings, folder: Path) -> None:
        values = {
            **settings.model_dump(mode="json", exclude_none=True),
            "url": settings.url.get_secret_value(),
        }
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps(values), str(folder)], stdout=subprocess.PIPE, text=True
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            self.said.extend(line.strip() for line in self.process.stdout)

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()


def test_worker_that_dies_before_the_acknowledgement_loses_nothing(stand: Stand, tmp_path: Path) -> None:
    stand.publisher.publish(task("fatal", "die after"))
    with WorkerProcess(stand.settings, tmp_path) as worker:
        worker.process.wait(WAIT)
    assert worker.process.returncode == -9
    assert "begin fatal" in worker.said
    told = [event.job for event in events(stand.settings)]
    assert told == ["fatal"]  # What follows was sent before it died.
    stand.work()
    stand.wait_for(Outcome.DONE)
    assert stand.outcomes[Outcome.REDELIVERED] == 1
    assert stand.begun == ["fatal"]
    assert [event.job for event in events(stand.settings)] == ["fatal"]


def test_poison_is_put_away_and_its_neighbours_are_done(broker: Server, tmp_path: Path) -> None:
    settings = settings_for(broker, deliveries=3)
    clear(settings)
    publisher = Publisher(settings)
    neighbours = {f"n{number}" for number in range(6)}
    publisher.publish(task("poison", "die"))
    for job in sorted(neighbours):
        publisher.publish(task(job, "sleep 1"))
    failed: list[Failed] = []
    done: set[str] = set()
    buried: list[str] = []

    def settled() -> bool:
        for event in events(settings):
            if isinstance(event, Failed):
                failed.append(event)
            else:
                done.add(event.job)
        buried.extend(parse(text).job for text, _ in dead(settings))
        return bool(failed and buried) and neighbours <= done

    deaths = 0
    deadline = time.monotonic() + 3 * WAIT
    while not settled():
        assert time.monotonic() < deadline
        with WorkerProcess(settings, tmp_path) as worker:
            wait_until(lambda: worker.process.poll() is not None or settled(), 2 * WAIT)
            deaths += worker.process.poll() == -9
    assert deaths == settings.deliveries
    assert [(event.job, event.reason) for event in failed] == [("poison", "poison")]
    assert buried == ["poison"]
    assert list(LocalStore(tmp_path).objects()) == []
    publisher.close()


def test_worker_drains_when_it_is_told_to_end(stand: Stand, tmp_path: Path) -> None:
    for number in range(8):
        stand.publisher.publish(task(f"j{number}", "sleep 0.5"))
    with WorkerProcess(stand.settings, tmp_path) as worker:
        wait_until(lambda: any(line.startswith("begin") for line in worker.said))
        worker.process.terminate()
        assert worker.process.wait(WAIT) == 0
    begun = {line.split()[1] for line in worker.said if line.startswith("begin")}
    done = {line.split()[1] for line in worker.said if line.startswith("done")}
    assert begun == done
    waiting = [parse(text).job for text, _ in read_all(stand.settings, "encode.interactive")]
    assert sorted([*done, *waiting]) == [f"j{number}" for number in range(8)]


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Makes a key and a certificate that it has signed itself."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    private, public = folder / f"{name}.key", folder / f"{name}.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return private, public


def test_only_signed_messages_are_taken(broker: Server, tmp_path: Path) -> None:
    trusted, foreign = tmp_path / "trusted", tmp_path / "foreign"
    trusted.mkdir()
    foreign.mkdir()

    def signing(folder: Path, name: str) -> BrokerSettings:
        key, public = certificate(folder, name)
        return settings_for(broker, signing_key=key, signing_certificate=public, signing_trusted=folder)

    # kombu has one signer a process, the last that was set up: the foreign one signs before ours is there.
    stranger = Publisher(signing(foreign, "stranger"))
    stranger.publish(task("stranger"))
    stranger.close()
    plain = Publisher(settings_for(broker))
    plain.publish(task("unsigned"))
    plain.close()
    stand = Stand(signing(trusted, "ours"))
    try:
        stand.publisher.publish(task("ours"))
        stand.work()
        stand.wait_for(Outcome.DONE)
        found = gather(lambda: dead(stand.settings), lambda found: len(found) >= 2)
        reasons = sorted(headers[WHY_DEAD] for _, headers in found)
        assert any("not accepted" in reason for reason in reasons), reasons
        assert any("cannot be read" in reason for reason in reasons), reasons
        assert stand.begun == ["ours"]
    finally:
        stand.stop()


def test_signing_is_set_wholly_or_not_at_all(tmp_path: Path) -> None:
    key, public = certificate(tmp_path, "ours")
    with pytest.raises(ValueError, match="SMALTI_BROKER_SIGNING_TRUSTED is not set"):
        BrokerSettings(signing_key=key, signing_certificate=public)
    with pytest.raises(InvalidInputError, match="SMALTI_BROKER_SIGNING_KEY"):
        celery_application(
            BrokerSettings(
                signing_key=tmp_path / "none", signing_certificate=public, signing_trusted=tmp_path
            )
        )


def test_other_broker_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="SMALTI_BROKER_URL"):
        celery_application(BrokerSettings(url=SecretStr("sqs://user:secret@host")))
    assert "very-secret" not in repr(BrokerSettings(url=SecretStr("redis://:very-secret@host")))
