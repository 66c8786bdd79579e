"""The gateway as a process, with a real broker and a real S3 store; the test acts as the stages."""

import os
import signal
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from harness.queue import clear, gather, read_all, settings_for
from harness.servers import S3Server, ValkeyServer
from harness.service_process import ServiceProcess
from harness.waiting import wait_until
from smalti.errors import InvalidInputError, JobNotFoundError
from smalti.messages import EncodeTask, Message, Stage, dead_queue_name
from smalti.queue import BrokerPublisher, Delivery, consume
from smalti.registry.folder import ModelFolder
from smalti.rpc.channel import blocking_channel
from smalti.rpc.errors import translated
from smalti.rpc.settings import RpcSettings
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.settings import gateway_settings
from smalti.storage import ObjectStore, StoreSettings, digest, open_store
from smalti.testing.stages import FakeStages, picture_bytes
from smalti.v1 import image_pb2, job_pb2
from smalti.v1.image_pb2_grpc import ImageServiceStub

LIMIT = 60.0
"""Seconds after which a call or a wait fails."""
PATIENT = RpcSettings(attempts=5)


@pytest.fixture(scope="module")
def store(s3: S3Server) -> ObjectStore:
    return open_store(StoreSettings(url=SecretStr(s3.url)))


@pytest.fixture(scope="module")
def gateway(
    valkey: ValkeyServer, s3: S3Server, tiny: ModelFolder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    """A gateway process; a test that ends it must start it again."""
    clear(settings_for(valkey))
    folder = tmp_path_factory.mktemp("gateway")
    process = ServiceProcess(
        "gateway",
        broker=valkey.url,
        store=s3.url,
        model=tiny.path,
        folder=folder,
        environment={
            "SMALTI_GATEWAY_DATABASE": f"sqlite:///{folder}/jobs.sqlite3",
            "SMALTI_BROKER_TIMEOUT": "2",
        },
    )
    with process:
        yield process


@pytest.fixture
def stub(gateway: ServiceProcess) -> Iterator[Any]:
    with blocking_channel(gateway.url, PATIENT) as channel:
        yield ImageServiceStub(channel)


class Workers:
    """Consumes the encoder's queue, and acts as all stages."""

    def __init__(self, valkey: ValkeyServer, store: ObjectStore) -> None:
        self._settings = settings_for(valkey)
        self._publisher = BrokerPublisher(self._settings)
        self._stages = FakeStages(store, tokens=16)

    def _work(self, delivery: Delivery) -> Iterable[Message]:
        assert isinstance(delivery.message, EncodeTask)
        return self._stages.run(delivery.message)

    def __enter__(self) -> None:
        self._consumption = consume(
            Stage.ENCODE, self._work, concurrency=2, publisher=self._publisher, settings=self._settings
        ).start()
        assert self._consumption.wait_until_ready(LIMIT)

    def __exit__(self, *_: object) -> None:
        self._consumption.stop(5)
        self._publisher.close()


@pytest.fixture
def workers(valkey: ValkeyServer, store: ObjectStore) -> Workers:
    return Workers(valkey, store)


def create(stub: Any, **fields: Any) -> job_pb2.Job:
    parameters = job_pb2.ImageParameters(prompt="a cat", n=3, candidates=8, seed=7)
    with translated():
        asked = image_pb2.CreateImagesRequest(parameters=parameters, request_id=str(uuid.uuid4()), **fields)
        job: job_pb2.Job = stub.CreateImages(asked, timeout=LIMIT).job
    return job


def watched(stub: Any, job_id: str) -> job_pb2.Job:
    """Watches a job to its end; returns its final state."""
    job = job_pb2.Job()
    for message in stub.WatchJob(image_pb2.WatchJobRequest(job_id=job_id), timeout=LIMIT):
        job = message.job if message.HasField("job") else job
    return job


def test_job_succeeds_and_its_pictures_can_be_downloaded(stub: Any, workers: Workers) -> None:
    with workers:
        job = watched(stub, create(stub).id)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED
    assert [picture.candidate for picture in job.pictures] == [7, 6, 5]
    for picture in job.pictures:
        with urllib.request.urlopen(picture.url, timeout=LIMIT) as response:
            content = response.read()
        assert content == picture_bytes(7, picture.candidate)
        assert digest(content) == picture.sha256
        assert picture.HasField("url_expire_time")
    pieces = stub.DownloadImages(image_pb2.DownloadImagesRequest(job_id=job.id), timeout=LIMIT)
    assert [piece.data for piece in pieces] == [picture_bytes(7, index) for index in (7, 6, 5)]


def test_killed_gateway_continues_its_jobs(
    gateway: ServiceProcess, stub: Any, workers: Workers, store: ObjectStore
) -> None:
    jobs = [create(stub).id for _ in range(3)]
    gateway.kill()
    with workers:  # The stages work meanwhile, and their events wait in the queue.
        gateway.start()
        assert [watched(stub, job).state for job in jobs] == [job_pb2.JOB_STATE_SUCCEEDED] * 3


def test_jobs_are_accepted_while_the_broker_is_unavailable(
    gateway: ServiceProcess, valkey: ValkeyServer, stub: Any, workers: Workers
) -> None:
    valkey.kill()
    jobs = [create(stub).id for _ in range(3)]
    valkey.start()
    with workers:
        assert [watched(stub, job).state for job in jobs] == [job_pb2.JOB_STATE_SUCCEEDED] * 3


def test_jobs_are_accepted_and_cancelled_while_the_store_is_unavailable(
    s3: S3Server, stub: Any, store: ObjectStore
) -> None:
    s3.stop()
    job = create(stub).id
    cancelled = stub.CancelJob(image_pb2.CancelJobRequest(job_id=job), timeout=LIMIT).job
    assert cancelled.state == job_pb2.JOB_STATE_CANCELLED
    s3.start()
    wait_until(lambda: store.stat(f"jobs/{job}/cancelled.json"))


def test_malformed_events_do_not_harm_jobs(valkey: ValkeyServer, stub: Any, workers: Workers) -> None:
    settings = settings_for(valkey)
    publisher = BrokerPublisher(settings)
    unknown = '{"version":1,"kind":"done","job":"nobody","stage":"rank","chunk":0,"expires":0,"objects":[]}'
    found: list[tuple[str, dict[str, Any]]] = []
    for text in ("rubbish", "{}"):
        publisher.publish_text(Stage.EVENTS, "smalti.events", text)
        # One after the other: the threads of the gateway bury messages in any order.
        found += gather(lambda: read_all(settings, dead_queue_name(Stage.EVENTS)), bool)
    publisher.publish_text(Stage.EVENTS, "smalti.events", unknown)
    publisher.close()
    with workers:
        assert watched(stub, create(stub).id).state == job_pb2.JOB_STATE_SUCCEEDED
    assert [text for text, _ in found] == ["rubbish", "{}"]
    assert read_all(settings, dead_queue_name(Stage.EVENTS)) == []


def test_terminated_gateway_ends_watches_and_exits_cleanly(gateway: ServiceProcess, stub: Any) -> None:
    job = create(stub).id
    watch = stub.WatchJob(image_pb2.WatchJobRequest(job_id=job), timeout=LIMIT)
    assert next(watch).job.id == job
    assert gateway.end(signal.SIGTERM) == 0
    gateway.start()
    with translated():
        stub.CancelJob(image_pb2.CancelJobRequest(job_id=job), timeout=LIMIT)
    with pytest.raises(JobNotFoundError), translated():
        stub.GetJob(image_pb2.GetJobRequest(job_id="nobody"), timeout=LIMIT)


def test_invalid_setting_is_named(tiny: ModelFolder, tmp_path: Path) -> None:
    process = ServiceProcess(
        "gateway",
        broker="redis://127.0.0.1:1",
        store=(tmp_path / "store").as_uri(),
        model=tiny.path,
        folder=tmp_path,
        environment={
            "SMALTI_GATEWAY_DATABASE": f"sqlite:///{tmp_path}/j.sqlite3",
            "SMALTI_GATEWAY_DECODER": "nowhere",
        },
    )
    ended = process.run()
    assert ended.returncode == 2
    assert "smalti gateway: SMALTI_GATEWAY_DECODER: 'nowhere' must have the form host:port" in ended.stderr


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("mysql://user:secret@host/database", "must have the form sqlite"),
        ("rubbish", "must have the form sqlite"),
        ("postgresql://host", "must have the form sqlite"),
        ("sqlite:////proc/nothing/jobs.sqlite3", "cannot create the folder of /proc/nothing/jobs.sqlite3"),
    ],
)
def test_invalid_database_address_is_refused(url: str, problem: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        Database(url)
    assert refused.value.field == "SMALTI_GATEWAY_DATABASE"
    assert problem in refused.value.problem
    assert "secret" not in str(refused.value)


def test_default_time_limit_must_not_exceed_the_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_GATEWAY_TIME_LIMIT", "60")
    with pytest.raises(
        InvalidInputError, match=r"^SMALTI_GATEWAY_\*: SMALTI_GATEWAY_DEFAULT_TIME_LIMIT must not be greater"
    ):
        gateway_settings()


@pytest.mark.parametrize("away", ["stopped", pytest.param("paused", marks=pytest.mark.slow)])
def test_gateway_ends_without_a_stack_trace_while_the_broker_is_away(
    tiny: ModelFolder, tmp_path: Path, away: str
) -> None:
    with ValkeyServer() as broker:
        process = ServiceProcess(
            "gateway",
            broker=broker.url,
            store=(tmp_path / "store").as_uri(),
            model=tiny.path,
            folder=tmp_path,
            environment={
                "SMALTI_GATEWAY_DATABASE": f"sqlite:///{tmp_path}/j.sqlite3",
                "SMALTI_BROKER_TIMEOUT": "20",
            },
        )
        with process:
            if away == "stopped":
                broker.stop()
            else:
                broker.pause()
            with blocking_channel(process.url, PATIENT) as channel:
                create(ImageServiceStub(channel))
            # It ends while a message waits for the broker's confirmation.
            process.end(signal.SIGTERM)
            said = process.log.read_text()
            if away == "paused":
                broker.resume()
    assert "Traceback" not in said


def test_gateway_that_others_reach_does_not_start_undecided(tmp_path: Path, tiny: ModelFolder) -> None:
    settings = {
        "SMALTI_STORE_URL": f"file://{tmp_path}/store",
        "SMALTI_GATEWAY_DATABASE": f"sqlite:///{tmp_path}/jobs.sqlite3",
        "SMALTI_MODEL": str(tiny.path),
        "SMALTI_RPC_HOST": "0.0.0.0",
        "SMALTI_PLAINTEXT": "1",
    }
    command = (sys.executable, "-m", "smalti.services.gateway")
    done = subprocess.run(
        command, env={**os.environ, **settings}, capture_output=True, text=True, check=False, timeout=LIMIT
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("smalti gateway: SMALTI_AUTH: is not set, and SMALTI_RPC_HOST=0.0.0.0 lets others")
    assert not (tmp_path / "jobs.sqlite3").exists()
