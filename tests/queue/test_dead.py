"""Dead letters: looking at them changes nothing, and sending them again loses none, on real brokers."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable

import pytest
from kombu.entity import Queue

from harness.queue import HARMLESS_WARNINGS, QueueHarness, clear, patient, read_all, settings_for, task
from harness.servers import Server, ValkeyServer, free_port
from harness.waiting import WAIT, wait_until
from smalti.cli import run
from smalti.messages import EncodeTask, Message, Stage, parse
from smalti.queue import (
    BrokerPublisher,
    BrokerSettings,
    DeadLetter,
    DeadLetters,
    Delivery,
    LetterFilter,
    Outcome,
    celery_application,
)
from smalti.queue.broker.queues import all_queues
from smalti.queue.broker.transport import BROKER_ERRORS, RawMessage
from smalti.queue.dead.headers import DIED, KIND, ORIGIN, REASON
from smalti.settings import PREFIX

pytestmark = [pytest.mark.filterwarnings(each) for each in HARMLESS_WARNINGS]

DEAD = "smalti.encode.dead"
QUEUE = "smalti.encode.interactive"


EVERY = LetterFilter()


def look(settings: BrokerSettings, chosen: LetterFilter = EVERY, *, old: bool = False) -> list[DeadLetter]:
    return [held.letter for held in DeadLetters(settings).find(chosen, old=old)]


def replay(harness: QueueHarness, chosen: LetterFilter = EVERY, *, old: bool = False) -> int:
    letters = DeadLetters(harness.settings)
    count = 0
    for held in letters.find(chosen, old=old):
        letters.replay(held, harness.publisher)
        count += 1
    return count


def bury(publisher: BrokerPublisher, job: str, *, kind: str = "poison", died: float = 0.0) -> None:
    """Puts a letter into the encoder's dead-letter queue."""
    headers = {REASON: f"why {job} died", KIND: kind, ORIGIN: QUEUE, DIED: died or time.time()}
    publisher.publish_text(Stage.ENCODE, DEAD, task(job).to_json(), headers=headers)


def test_letters_are_looked_at_and_sent_again(queue_harness: QueueHarness) -> None:
    settings = queue_harness.settings
    broken = True

    def handle(delivery: Delivery) -> Iterable[Message]:
        assert isinstance(delivery.message, EncodeTask)
        if broken:
            raise ValueError("it breaks")
        return [delivery.message.done()]

    queue_harness.publisher.publish(task("given-up", attempt=queue_harness.settings.attempts))
    queue_harness.publisher.publish_raw(
        QUEUE, b"\x00\xff", "application/json", "binary", {"task": "smalti.encode"}
    )
    queue_harness.work(handle)
    wait_until(lambda: len(look(settings)) == 2)
    first = look(settings)
    assert [letter.id for letter in first] == [letter.id for letter in look(settings)]
    assert {(letter.kind, letter.origin, letter.job) for letter in first} == {
        ("poison", QUEUE, "given-up"),
        ("unreadable", QUEUE, ""),
    }
    assert all(letter.died is not None and abs(letter.died - time.time()) < 600 for letter in first)
    [poisoned] = look(settings, LetterFilter(kinds=frozenset({"poison"})))
    assert poisoned.why.startswith("failed at attempt")
    assert poisoned.message is not None
    broken = False
    assert replay(queue_harness, LetterFilter(ids=frozenset({poisoned.id}))) == 1
    queue_harness.wait_for(Outcome.DONE)
    assert [letter.kind for letter in look(settings)] == ["unreadable"]
    # What nobody can read comes back, with the same body.
    assert replay(queue_harness) == 1
    wait_until(lambda: [letter.raw.body for letter in look(settings)] == [b"\x00\xff"])


def test_letters_are_chosen(queue_harness: QueueHarness) -> None:
    settings, publisher = queue_harness.settings, queue_harness.publisher
    now = time.time()
    bury(publisher, "a", died=now - 7200)
    bury(publisher, "b", kind="exhausted", died=now - 60)
    bury(publisher, "c", died=now - 60)

    def jobs(**chosen: object) -> list[str]:
        return [letter.job for letter in look(settings, LetterFilter(**chosen))]  # type: ignore[arg-type]

    assert jobs() == ["a", "b", "c"]
    assert jobs(older=3600.0) == ["a"]
    assert jobs(newer=3600.0) == ["b", "c"]
    assert jobs(kinds=frozenset({"exhausted"})) == ["b"]
    assert jobs(job="c") == ["c"]
    assert jobs(stages=frozenset({Stage.RANK})) == []
    for held in DeadLetters(settings).find(LetterFilter(job="b")):
        held.remove()
    assert jobs() == ["a", "c"]


def waiting(settings: BrokerSettings) -> int:
    """Returns how many messages wait for the encoder."""
    with celery_application(patient(settings)).connection_for_read() as connection:
        try:
            return int(connection.channel().queue_declare(QUEUE, passive=True).message_count)
        except BROKER_ERRORS:
            return 0  # Valkey has no empty queues.


def test_killed_replay_loses_nothing(broker: Server) -> None:
    settings = settings_for(broker)
    publisher = BrokerPublisher(settings)
    jobs = {f"j{number}" for number in range(200)}
    for job in sorted(jobs):
        bury(publisher, job)
    publisher.close()
    environment = os.environ | {f"{PREFIX}BROKER_URL": broker.url}
    command = [sys.executable, "-m", "smalti", "queue", "dead", "replay", "--all"]
    instants = random.Random(1)
    sent: set[str] = set()
    killed = 0
    while killed < 3:
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
            wait_until(lambda process=process: waiting(settings) > 0 or process.poll() is not None, 4 * WAIT)  # type: ignore[misc]
            time.sleep(instants.uniform(0, 0.02))
            process.kill()
        killed += 1
        sent |= {parse(text).job for text, _ in read_all(settings, QUEUE)}
        # RabbitMQ takes back what the dead process held once it knows that it is dead.
        wait_until(lambda sent=sent: {letter.job for letter in look(settings)} | sent == jobs)  # type: ignore[misc]
    assert sent
    harness = QueueHarness(settings)
    replay(harness)
    harness.stop()
    assert look(settings) == []
    sent |= {parse(text).job for text, _ in read_all(settings, QUEUE)}
    assert sent == jobs


def test_messages_under_the_names_of_the_first_version_are_moved(broker: Server) -> None:
    settings = settings_for(broker)
    harness = QueueHarness(settings)
    with celery_application(patient(settings)).connection_for_write() as connection:
        channel = connection.channel()
        for old in ("encode.interactive", "encode.dead", "events"):
            Queue(old, durable=True)(channel).declare()
            Queue(old)(channel).purge()
        harness.publisher.publish(task("waits"))
        bury(harness.publisher, "dead")
        for queue, old in ((QUEUE, "encode.interactive"), (DEAD, "encode.dead")):
            taken = all_queues(settings)[queue](channel).get(no_ack=True)
            assert taken is not None
            raw = RawMessage.of(taken)
            for name in (old, "events"):
                headers = dict(raw.headers) if name == old else {"task": "of.another.program"}
                channel.basic_publish(
                    channel.prepare_message(raw.body, None, raw.content_type, raw.content_encoding, headers),
                    exchange="",
                    routing_key=name,
                )
        assert look(settings) == []
        wait_until(lambda: {letter.job for letter in look(settings, old=True)} == {"waits", "dead"})
        assert {letter.kind for letter in look(settings, old=True)} == {"old-name", "poison"}
        assert replay(harness, old=True) == 2
        assert {parse(text).job for text, _ in read_all(settings, QUEUE)} == {"waits", "dead"}
        for old in ("encode.interactive", "encode.dead", "events"):
            channel.queue_delete(old)
    harness.stop()


def test_command(
    valkey: ValkeyServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(valkey)
    clear(settings)
    monkeypatch.setenv(f"{PREFIX}BROKER_URL", valkey.url)
    publisher = BrokerPublisher(settings)
    for job in ("a", "b", "c"):
        bury(publisher, job, kind="exhausted" if job == "b" else "poison")
    publisher.close()

    def call(*arguments: str, status: int = 0) -> str:
        assert run(["queue", "dead", *arguments]) == status
        printed = capsys.readouterr()
        return printed.out if status == 0 else printed.err

    listed = json.loads(call("list", "--json"))
    assert [(each["job"], each["kind"], each["origin"]) for each in listed] == [
        ("a", "poison", QUEUE),
        ("b", "exhausted", QUEUE),
        ("c", "poison", QUEUE),
    ]
    assert "why a died" in call("list")
    [shown] = json.loads(call("show", listed[0]["id"]))
    assert shown["message"]["prompt"] == "a cat"
    assert "say which letters" in call("replay", status=2)
    assert "say which letters" in call("drop", status=2)
    assert "--older: must be a number with a unit" in call("list", "--older", "soon", status=2)
    assert "--queue: must be one of encode" in call("list", "--queue", "nothing", status=2)
    assert call("replay", "--newer", "1h", "--kind", "exhausted") == "sent again: 1\n"
    assert json.loads(call("drop", listed[0]["id"], "--json"))["job"] == "a"
    assert call("drop", "--queue", "encode", "--older", "1h") == "dropped: 0\n"
    assert "there is no dead letter 0123" in call("replay", "0123", status=1)
    assert call("drop", "--all") == "dropped: 1\n"
    assert call("list") == "There are no dead letters.\n"
    assert [parse(text).job for text, _ in read_all(settings, QUEUE)] == ["b"]


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_broker_that_is_away_is_one_line(
    scheme: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{PREFIX}BROKER_URL", f"{scheme}://127.0.0.1:{free_port()}/")
    assert run(["queue", "dead", "list"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("smalti: the broker is not available: ")
    assert said.count("\n") == 1
