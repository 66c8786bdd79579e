"""A service process: start, health, drain and exit."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.queue import clear, events, gather, read_all, settings_for, task
from harness.servers import ValkeyServer
from harness.service_process import NOT_SERVING, SERVING, ServiceProcess
from harness.waiting import wait_until
from smalti.errors import InvalidInputError
from smalti.messages import StageDone
from smalti.queue import BrokerPublisher
from smalti.service import failpoints
from smalti.storage import LocalStore

STAGE_PROCESS = str(Path(__file__).with_name("stage_process.py"))


@pytest.fixture
def service(valkey: ValkeyServer, store: LocalStore, tmp_path: Path) -> Iterator[ServiceProcess]:
    clear(settings_for(valkey))
    process = ServiceProcess(
        "encoder",
        broker=valkey.url,
        store=store.folder.as_uri(),
        model=tmp_path,
        command=(sys.executable, STAGE_PROCESS),
    )
    yield process
    process.close()


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def test_service_serves_and_drains(
    service: ServiceProcess, publisher: BrokerPublisher, store: LocalStore, valkey: ValkeyServer
) -> None:
    service.environment = {"CELERY_BROKER_URL": "redis://:secret@127.0.0.1:9/0"}
    service.start()
    assert service.health() == SERVING
    said = service.log.read_text()
    assert f"encoder starts with broker: {valkey.url}; store: can be written" in said
    assert "variables of other programs are ignored: CELERY_BROKER_URL" in said
    assert "secret" not in said
    publisher.publish(task("j1", "sleep 0.5"))
    wait_until(lambda: store.stat("begun/j1"))
    assert service.end() == 0
    # The running task was finished, and the queue is empty.
    assert [type(event) for event in events(publisher.settings)] == [StageDone]
    assert not read_all(publisher.settings, "smalti.encode.interactive")


def test_health_of_the_store_is_apart_from_that_of_the_process(
    service: ServiceProcess, store: LocalStore
) -> None:
    service.start()
    shutil.rmtree(store.folder)
    store.folder.write_text("no folder")
    assert service.health("store") == NOT_SERVING
    assert service.health() == SERVING


def test_hanging_drain_leaves_the_message_in_its_queue(
    service: ServiceProcess, publisher: BrokerPublisher, store: LocalStore
) -> None:
    service.environment = {"SMALTI_SERVICE_GRACE": "3", "SMALTI_BROKER_DRAIN": "0.5"}
    service.start()
    publisher.publish(task("j1", "hang"))
    wait_until(lambda: store.stat("begun/j1"))
    assert service.end() == 1
    assert len(gather(lambda: read_all(publisher.settings, "smalti.encode.interactive"), bool)) == 1


def test_hanging_process_logs_its_stacks_and_exits(
    service: ServiceProcess, publisher: BrokerPublisher, store: LocalStore
) -> None:
    service.environment = {"SMALTI_SERVICE_GRACE": "1"}
    service.start()
    publisher.publish(task("j1", "hang"))
    wait_until(lambda: store.stat("begun/j1"))
    assert service.end() == 1
    assert "stage_process.py" in service.log.read_text()
    assert "handle" in service.log.read_text()


def test_stopped_background_task_ends_the_process(
    service: ServiceProcess, publisher: BrokerPublisher
) -> None:
    service.start()
    publisher.publish(task("j1", "die"))
    assert service.wait() == 1
    assert "BackgroundTask has stopped" in service.log.read_text()


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("SMALTI_SERVICE_GRACE", "soon", "SMALTI_SERVICE_GRACE: input should be a valid number"),
        ("SMALTI_STORE_URL", "ftp://store", "SMALTI_STORE_URL: "),
        ("SMALTI_BROKER_URL", "http://broker", "SMALTI_BROKER_URL: "),
        ("SMALTI_RPC_HOST", "203.0.113.1", "SMALTI_RPC_TLS_CERTIFICATE: is not set"),
        ("SMALTI_FAILPOINTS", "encode=boom", "SMALTI_FAILPOINTS: 'encode=boom' must have "),
    ],
)
def test_invalid_setting_is_reported_in_one_line(
    service: ServiceProcess, variable: str, value: str, problem: str
) -> None:
    service.environment = {variable: value, "SMALTI_LOG_LEVEL": "error"}
    done = service.run()
    assert done.returncode == 2
    assert done.stderr.startswith(f"smalti encoder: {problem}")
    assert done.stderr.count("\n") == 1


def test_failpoints_are_parsed() -> None:
    failpoint = failpoints.parse("decode.after-read=sleep:1.5@2?prompt=a cat")
    assert (failpoint.point, failpoint.action, failpoint.seconds) == ("decode.after-read", "sleep", 1.5)
    assert [failpoint.concerns({"prompt": prompt}) for prompt in ("a cat sleeps", "a dog")] == [True, False]
    assert [failpoint.take(None) for _ in range(3)] == [True, True, False]
    with pytest.raises(InvalidInputError, match="explode"):
        failpoints.parse("decode.after-read=explode")


def test_failpoint_count_is_shared_by_all_processes(tmp_path: Path) -> None:
    first, second = (failpoints.parse("rank.before-write=kill@2") for _ in range(2))
    assert [each.take(tmp_path) for each in (first, second, first, second)] == [True, True, False, False]
