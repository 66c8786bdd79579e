"""Workers say hello to the gateways, and take the work of their key."""

import base64
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.paths import ROOT
from harness.queue import clear, events, gather, read_all, settings_for, task
from harness.servers import ValkeyServer
from harness.service_process import ServiceProcess
from smalti import __version__
from smalti.errors import InvalidInputError
from smalti.messages import HELLO_QUEUE, VERSION, Hello, Stage, StageDone, parse_hello
from smalti.queue import BrokerPublisher
from smalti.registry.folder import ModelFolder
from smalti.registry.routes import route_keys
from smalti.registry.spec import ModelSpec
from smalti.rpc.settings import RpcSettings
from smalti.service import service_settings
from smalti.service.serving import Serving
from smalti.v1.model_pb2 import Model

STAGE_PROCESS = str(Path(__file__).with_name("stage_process.py"))
KEY = "a1b2c3d4e5f6"


@pytest.fixture
def worker(valkey: ValkeyServer, tmp_path: Path) -> Iterator[ServiceProcess]:
    """An encoder without an engine."""
    clear(settings_for(valkey))
    process = ServiceProcess(
        "encoder",
        broker=valkey.url,
        store=(tmp_path / "store").as_uri(),
        model=tmp_path,
        environment={"SMALTI_MESSAGES_WRITE": "3", "SMALTI_SERVICE_HELLO": "0.2"},
        command=(sys.executable, STAGE_PROCESS),
    )
    yield process
    process.close()


def hellos(publisher: BrokerPublisher) -> list[Hello]:
    return [parse_hello(text) for text, _ in read_all(publisher.settings, HELLO_QUEUE)]


def test_a_worker_says_what_it_serves_until_it_leaves(
    worker: ServiceProcess, publisher: BrokerPublisher
) -> None:
    worker.environment["SMALTI_RPC_ADVERTISE"] = "encoder.example"
    worker.start()
    found = gather(lambda: hellos(publisher), lambda found: len(found) >= 3)
    assert worker.end() == 0
    last = hellos(publisher)[-1]
    assert [hello.leaving for hello in found] == [False] * len(found)
    assert last.leaving
    assert len({hello.worker for hello in (*found, last)}) == 1
    times = [hello.sent for hello in (*found, last)]
    assert times == sorted(times)
    first = found[0]
    assert (first.stage, first.key, first.model, first.revision) == (Stage.ENCODE, KEY, "none", "sha256:0")
    assert (first.slots, first.concurrency, first.device) == (1, 2, "cpu")
    assert (first.code, first.reads, first.interval) == (__version__, VERSION, 0.2)
    assert first.address == f"encoder.example:{worker.port}"
    assert (first.card, first.parts) == ("CgYKBG5vbmU=", {"decode": "0d0e0c0d0e00"})


def test_a_worker_serves_its_key_and_is_silent_where_0_2_0_may_be(
    worker: ServiceProcess, publisher: BrokerPublisher
) -> None:
    del worker.environment["SMALTI_MESSAGES_WRITE"]
    worker.start()
    publisher.publish(task("keyed", version=3, routes={Stage.ENCODE: KEY}))
    publisher.publish(task("old"))
    found = gather(lambda: events(publisher.settings), lambda found: len(found) >= 2)
    assert {event.job for event in found if isinstance(event, StageDone)} == {"keyed", "old"}
    assert worker.end() == 0
    assert hellos(publisher) == []


def test_a_worker_that_would_get_no_work_does_not_start() -> None:
    environment = {"SMALTI_MESSAGES_WRITE": "2", "SMALTI_BROKER_OLD_QUEUES": "0"}
    done = subprocess.run(
        [sys.executable, STAGE_PROCESS],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "SMALTI_BROKER_OLD_QUEUES: must be 1 unless SMALTI_MESSAGES_WRITE is 3" in done.stderr


def test_an_interval_that_no_hello_may_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_SERVICE_HELLO", "7200")
    with pytest.raises(InvalidInputError, match="SMALTI_SERVICE_HELLO"):
        service_settings()


def test_encoders_tell_the_card_and_the_keys_of_their_model(worded: ModelFolder) -> None:
    spec = ModelSpec.load(worded)
    encoder, ranker = Serving.of(Stage.ENCODE, spec, "cpu"), Serving.of(Stage.RANK, spec, "cpu")
    assert encoder.parts == route_keys(worded)
    assert encoder.key == encoder.parts[Stage.ENCODE]
    assert ranker.key == encoder.parts[Stage.RANK]
    assert (ranker.card, ranker.parts) == (None, {})
    card = Model.FromString(base64.b64decode(encoder.card or ""))
    assert (card.reference.name, card.reference.revision) == (worded.name, worded.revision)
    assert card.vocabulary.closed
    assert not card.HasField("limits")


@pytest.mark.parametrize(
    ("host", "advertise", "address"),
    [
        ("127.0.0.1", "", "127.0.0.1:7"),
        ("::1", "", "[::1]:7"),
        ("0.0.0.0", "", f"{socket.gethostname()}:7"),
        ("0.0.0.0", "decoder", "decoder:7"),
        ("127.0.0.1", "10.0.0.7:50", "10.0.0.7:50"),
        ("127.0.0.1", "[fd00::1]", "[fd00::1]:7"),
        ("127.0.0.1", "[fd00::1]:50", "[fd00::1]:50"),
    ],
)
def test_address_that_others_call(host: str, advertise: str, address: str) -> None:
    assert RpcSettings(host=host, advertise=advertise).advertised(7) == address


@pytest.mark.parametrize("wrong", ["a:b", "a:70000", ":5", "a/b", "u@a", "http://a", "[::1"])
def test_wrong_address_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="advertise"):
        RpcSettings(advertise=wrong)
