"""A rollout and a rollback under load, with real services: no job fails, and each is drawn by one revision."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from harness.meanwhile import meanwhile
from harness.queue import clear, settings_for
from harness.servers import S3Server, ValkeyServer
from harness.service_process import ServiceProcess
from harness.waiting import wait_until
from smalti import Client
from smalti.registry.folder import ModelFolder
from smalti.testing.model import tiny_model
from smalti.v1.job_pb2 import JOB_STATE_SUCCEEDED, Job

pytestmark = [pytest.mark.slow, pytest.mark.process, pytest.mark.server]

STEP_SECONDS = 180.0
"""Time within which workers come or go on a busy machine."""
MORE = 4
"""Jobs that come while one revision alone has workers."""
OWN = ("encoder", "generator")
"""The services that only one revision has; decoder and ranker are shared."""


class System:
    """A gateway, a decoder and a ranker, and the encoders and generators of two revisions."""

    def __init__(self, folder: Path, valkey: ValkeyServer, s3: S3Server) -> None:
        self._broker, self._store = valkey.url, s3.url
        self.old = tiny_model(folder / "old" / "tiny", 1, pictures_seed=1)
        self.new = tiny_model(folder / "new" / "tiny", 2, pictures_seed=1)
        self._database = f"sqlite:///{folder}/jobs.sqlite3"
        self._stack = ExitStack()
        self.gateway = self._process("gateway", self.old)
        self.workers = {
            model.revision: [self._process(name, model) for name in OWN] for model in (self.old, self.new)
        }
        self._shared = [self._process(name, self.old) for name in ("decoder", "ranker")]

    def _process(self, name: str, model: ModelFolder) -> ServiceProcess:
        process = ServiceProcess(
            name,
            broker=self._broker,
            store=self._store,
            model=model.path,
            environment={
                "SMALTI_MESSAGES_WRITE": "3",
                "SMALTI_SERVICE_HELLO": "1",
                "SMALTI_BROKER_OLD_QUEUES": "0",
                "SMALTI_GATEWAY_DATABASE": self._database,
                "SMALTI_GATEWAY_LEASE": "15",
            },
        )
        self._stack.callback(process.close)
        return process

    def __enter__(self) -> "System":
        begun = [self.gateway, *self._shared, *self.workers[self.old.revision]]
        for each in begun:
            each.launch()
        for each in begun:
            each.wait_until_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, model: ModelFolder, client: Client) -> None:
        """Starts the workers of a revision, and waits until jobs can be drawn with it."""
        for each in self.workers[model.revision]:
            each.launch()
        for each in self.workers[model.revision]:
            each.wait_until_ready()
        wait_until(lambda: slots(client).get(model.revision, 0) > 0, STEP_SECONDS)

    def stop(self, model: ModelFolder, client: Client) -> None:
        """Stops the workers of a revision in an orderly way, whatever they work on."""
        for each in self.workers[model.revision]:
            each.tell()
        for each in self.workers[model.revision]:
            assert each.wait() == 0
        wait_until(lambda: model.revision not in slots(client), STEP_SECONDS)


def slots(client: Client) -> dict[str, int]:
    """Returns the slots of the revisions that can be drawn now."""
    return {model.reference.revision: model.slots for model in client.models() if model.available}


@contextmanager
def load(url: str) -> Iterator[list[Job]]:
    """Creates jobs while the block runs; after it, they have all ended."""
    jobs: list[Job] = []

    def create(over: threading.Event) -> None:
        with Client(url) as client:
            while not over.wait(0.5):
                job = client.create("a red fox", seed=7, n=1, candidates=2)
                jobs.append(job)

    with meanwhile(create):
        yield jobs


def wait_for_more(jobs: list[Job]) -> None:
    """Waits until some more jobs have come."""
    before = len(jobs)
    wait_until(lambda: len(jobs) >= before + MORE, STEP_SECONDS)


@pytest.fixture
def system(tmp_path: Path, valkey: ValkeyServer, s3: S3Server) -> Iterator[System]:
    clear(settings_for(valkey))
    with System(tmp_path, valkey, s3) as running:
        yield running


def test_rollout_and_rollback_under_load(system: System) -> None:
    old, new = system.old, system.new
    with Client(system.gateway.url) as client:
        wait_until(lambda: slots(client).get(old.revision, 0) > 0, STEP_SECONDS)
        with load(system.gateway.url) as jobs:
            system.start(new, client)
            system.stop(old, client)
            wait_for_more(jobs)
            pinned = client.create("a red fox", seed=7, n=1, candidates=2, revision=old.revision)
            wait_until(lambda: "waits for workers" in client.get(pinned.id).trouble, STEP_SECONDS)
            system.start(old, client)
            system.stop(new, client)
            wait_for_more(jobs)
        files = defaultdict[str, set[str]](set)
        for job in [*jobs, pinned]:
            *_, ended = client.watch(job.id)
            assert ended.state == JOB_STATE_SUCCEEDED, ended
            files[ended.parameters.model.revision].add(ended.pictures[0].sha256)
        assert client.get(pinned.id).parameters.model.revision == old.revision
        assert {revision: len(found) for revision, found in files.items()} == {
            old.revision: 1,
            new.revision: 1,
        }
