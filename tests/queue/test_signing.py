"""Signed messages on real brokers: only messages with a trusted signature are accepted."""

import logging
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import SecurityError
from celery.security.certificate import Certificate
from celery.security.key import PrivateKey
from kombu.exceptions import DecodeError
from kombu.message import Message as KombuMessage

from harness.queue import HARMLESS_WARNINGS, QueueHarness, clear, dead, gather, settings_for, signing_as, task
from harness.servers import Server, ValkeyServer
from harness.signing import certificate
from smalti.errors import InvalidInputError, MalformedMessageError
from smalti.messages import Event, FailureReason, Message, Stage
from smalti.queue import (
    BrokerPublisher,
    BrokerSettings,
    DeadLetters,
    Delivery,
    LetterFilter,
    Outcome,
    celery_application,
)
from smalti.queue.broker.queues import declared
from smalti.queue.dead.headers import REASON as DEAD_REASON_HEADER
from smalti.queue.delivery import DeliveryHandler
from smalti.queue.outcomes import ReceivedMessage
from smalti.queue.publisher import REDELIVERIES_HEADER
from smalti.queue.signing import SealingSerializer, TrustedCertificates

pytestmark = [pytest.mark.filterwarnings(each) for each in HARMLESS_WARNINGS]


def test_only_signed_messages_are_accepted(broker: Server, tmp_path: Path) -> None:
    trusted, foreign = tmp_path / "trusted", tmp_path / "foreign"
    # kombu has one signer per process, the last that was set up, so the stranger signs first.
    stranger = BrokerPublisher(signing_as(broker, foreign, "gateway"))
    stranger.publish(task("stranger"))
    stranger.close()
    plain = BrokerPublisher(settings_for(broker))
    plain.publish(task("unsigned"))
    plain.close()
    queue_harness = QueueHarness(signing_as(broker, trusted, "all"))
    try:
        queue_harness.publisher.publish(task("ours"))
        queue_harness.work()
        queue_harness.wait_for(Outcome.DONE)
        found = gather(lambda: dead(queue_harness.settings), lambda found: len(found) >= 2)
        reasons = sorted(headers[DEAD_REASON_HEADER] for _, headers in found)
        assert any("not accepted" in reason for reason in reasons), reasons
        assert any("cannot be read" in reason for reason in reasons), reasons
        assert queue_harness.begun == ["ours"]
    finally:
        queue_harness.stop()


def test_signing_settings_go_together(tmp_path: Path) -> None:
    key, public = certificate(tmp_path, "gateway")
    with pytest.raises(ValueError, match="missing: SMALTI_BROKER_SIGNING_TRUSTED"):
        BrokerSettings(signing_key=key, signing_certificate=public)
    with pytest.raises(InvalidInputError, match="SMALTI_BROKER_SIGNING_KEY"):
        celery_application(
            BrokerSettings(
                signing_key=tmp_path / "none", signing_certificate=public, signing_trusted=tmp_path
            )
        )


@pytest.fixture
def trusted(tmp_path: Path) -> Path:
    folder = tmp_path / "trusted"
    folder.mkdir()
    return folder


@pytest.fixture
def emptied(valkey: ValkeyServer) -> ValkeyServer:
    """A broker with empty queues."""
    clear(settings_for(valkey))
    return valkey


def publish_as(server: Server, trusted: Path, name: str, *messages: Message) -> None:
    """Sends messages with the key of a service. It signs everything of this process until another one is set up."""
    publisher = BrokerPublisher(signing_as(server, trusted, name))
    for message in messages:
        publisher.publish(message)
    publisher.close()


def take(settings: BrokerSettings, queue: str) -> list[KombuMessage]:
    """Takes the messages of a queue as they are."""
    found = []
    with celery_application(settings).connection_for_write() as connection:
        bound = declared(queue, settings)(connection.channel())
        bound.declare()
        while message := bound.get(accept=["application/data"], no_ack=True):
            found.append(message)
    return found


def reasons_of_the_dead(settings: BrokerSettings, stage: Stage, count: int) -> list[str]:
    found = gather(lambda: dead(settings, stage), lambda found: len(found) >= count)
    return sorted(headers[DEAD_REASON_HEADER] for _, headers in found)


def test_signature_covers_the_headers_and_the_queue(
    emptied: ValkeyServer, trusted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = signing_as(emptied, trusted, "gateway")
    publish_as(emptied, trusted, "gateway", task("told"), task("moved"))
    told, moved = take(settings, "smalti.encode.interactive")
    counts = []
    handle = DeliveryHandler.handle

    def watched(self: DeliveryHandler, received: ReceivedMessage) -> None:
        counts.append(received.redeliveries)
        handle(self, received)

    monkeypatch.setattr(DeliveryHandler, "handle", watched)
    queue_harness = QueueHarness(signing_as(emptied, trusted, "encoder"))
    raw = queue_harness.publisher.publish_raw

    def send(queue: str, message: KombuMessage, **headers: Any) -> None:
        body = message.body if isinstance(message.body, bytes) else str(message.body).encode()
        raw(queue, body, "application/data", "utf-8", {**message.headers, **headers})

    try:
        # Its count of crashes would have it run alone, or even given up.
        send("smalti.encode.interactive", told, **{REDELIVERIES_HEADER: 9})
        send("smalti.encode.batch", moved)
        # Celery's own signature, of the message alone.
        bare = BrokerPublisher(settings_for(emptied), application=celery_application(settings))
        bare.publish(task("bare"))
        bare.close()
        queue_harness.work()
        queue_harness.wait_for(Outcome.DONE)
        assert queue_harness.begun == ["told"]
        assert reasons_of_the_dead(queue_harness.settings, Stage.ENCODE, 2) == [
            "the message was signed for the queue 'smalti.encode.interactive'",
            "the signature does not cover the headers",
        ]
        assert set(counts) == {0}
    finally:
        queue_harness.stop()


def test_each_key_may_say_only_what_its_service_says(emptied: ValkeyServer, trusted: Path) -> None:
    asked = task("j1")
    failed = asked.failed(FailureReason.POISON, "it is said")
    signing_as(emptied, trusted, "gateway")
    publish_as(emptied, trusted, "ranker", failed, asked)  # It may send chunks back to the encoder.
    publish_as(emptied, trusted, "generator-2", failed)
    publish_as(emptied, trusted, "encoder", failed)
    heard: list[Message] = []

    def hear(delivery: Delivery) -> Iterable[Message]:
        assert isinstance(delivery.message, Event)
        heard.append(delivery.message)
        return ()

    queue_harness = QueueHarness(signing_as(emptied, trusted, "gateway"))
    try:
        queue_harness.work(hear, stage=Stage.EVENTS)
        queue_harness.wait_for(Outcome.DONE)
        assert reasons_of_the_dead(queue_harness.settings, Stage.EVENTS, 2) == [
            "the key of the generator must not send this message",
            "the key of the ranker must not send this message",
        ]
        assert heard == [failed]
    finally:
        queue_harness.stop()


class Trap:
    """Runs code of its sender when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def test_signed_pickle_is_not_unpickled(tmp_path: Path) -> None:
    """Celery signs the body, but not the content type by which it would decode the body."""
    key, public = certificate(tmp_path, "ranker")
    signer = SealingSerializer(
        PrivateKey(key.read_text()), Certificate(public.read_text()), TrustedCertificates(tmp_path)
    )
    task_body: list[Any] = [[], {}, {}]
    assert signer.deserialize(signer.serialize(task_body)) == [[], {"signer": "ranker"}, {}]
    body = pickle.dumps(Trap(tmp_path / "run"))
    signature = signer._key.sign(body, signer._digest)
    for kind, encoding in (("application/x-python-serialize", "binary"), ("application/json", "utf-8")):
        message = signer._pack(body, kind, encoding, signer._cert.get_id(), signature)
        with pytest.raises((SecurityError, DecodeError)):
            signer.deserialize(message)
    assert not (tmp_path / "run").exists()


def test_certificate_that_is_removed_is_not_trusted_any_more(emptied: ValkeyServer, trusted: Path) -> None:
    publish_as(emptied, trusted, "gateway", task("after"))
    queue_harness = QueueHarness(signing_as(emptied, trusted, "encoder"))
    (trusted / "gateway.pem").unlink()
    try:
        queue_harness.work()
        (reason,) = reasons_of_the_dead(queue_harness.settings, Stage.ENCODE, 1)
        assert "is not trusted" in reason
        assert queue_harness.begun == []
    finally:
        queue_harness.stop()


def test_trusted_files_must_say_whose_they_are_and_belong_to_their_owner(
    trusted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings: Any = {"signing_trusted": trusted}
    for name in ("encoder", "somebody"):
        key, public = certificate(trusted, name)
        settings |= {"signing_key": key, "signing_certificate": public}
    with pytest.raises(InvalidInputError, match="must begin with whose certificate it is: gateway, encoder"):
        celery_application(BrokerSettings(**settings))
    public.unlink()
    settings["signing_certificate"] = trusted / "encoder.pem"
    (trusted / "encoder.key").chmod(0o644)
    (trusted / "encoder.pem").chmod(0o666)
    settings["signing_key"] = trusted / "encoder.key"
    with caplog.at_level(logging.WARNING):
        celery_application(BrokerSettings(**settings))
    told = "\n".join(caplog.messages)
    assert "SMALTI_BROKER_SIGNING_KEY: others can read or change" in told
    assert "SMALTI_BROKER_SIGNING_TRUSTED: others can change what is trusted in" in told


def test_dead_letters_keep_their_signatures_and_others_are_not_sent_again(
    emptied: ValkeyServer, trusted: Path
) -> None:
    publish_as(emptied, trusted, "gateway", task("again", attempt=5))
    queue_harness = QueueHarness(signing_as(emptied, trusted, "encoder"))
    broken = True

    def handle(delivery: Delivery) -> Iterable[Message]:
        if broken:
            raise ValueError("it breaks")
        return []

    letters = DeadLetters(queue_harness.settings)
    try:
        queue_harness.work(handle)
        found = gather(lambda: [held.letter for held in letters.find(LetterFilter())], bool)[0]
        assert (found.signed, found.job, found.kind) == (True, "again", "poison")
        # What was refused because of its signature, or has none, would be accepted if this process signed it.
        encode = "smalti.encode.dead"
        raw = queue_harness.publisher.publish_raw
        raw(
            encode,
            b'[["{}"], {}, {}]',
            "application/json",
            "utf-8",
            {"task": "smalti.encode", "id": "unsigned"},
        )
        queue_harness.publisher.publish_text(Stage.ENCODE, encode, task("moved").to_json())
        broken = False
        problems = []
        for held in letters.find(LetterFilter()):
            try:
                letters.replay(held, queue_harness.publisher)
            except MalformedMessageError as error:
                problems.append(str(error))
        assert problems == [
            "it is not signed, and the services accept only signed messages",
            f"it was signed for the queue {encode}, and not for smalti.encode.interactive",
        ]
        queue_harness.wait_for(Outcome.DONE)
        assert queue_harness.begun == ["again", "again"]
        assert len(list(letters.find(LetterFilter()))) == 2
    finally:
        queue_harness.stop()
