"""A generator in two processes: one model, split over both, serves the queue; no work is lost when a process ends."""

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TypeVar

import numpy as np
import pytest

from harness.objects import put_named
from harness.queue import events, gather, task
from harness.servers import HOST, S3Server, ValkeyServer, free_port
from harness.service_process import SERVING, ServiceProcess
from smalti.messages import Chunk, Message, Progress, Stage, StageDone
from smalti.pipeline import Pipeline
from smalti.queue import BrokerPublisher
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.service.objects import encoding_bytes, load_tokens
from smalti.storage import JobKeys, ObjectStore
from tests.services.generator.conftest import PROMPT

SEED = 7
CHUNK = Chunk(chunk=0, candidates=(0, 1, 2, 3))

Event = TypeVar("Event", bound=Message)


class Group:
    """A leader and a follower on this machine."""

    def __init__(self, valkey: ValkeyServer, s3: S3Server, model: ModelFolder) -> None:
        shared = {
            "SMALTI_GROUP_SIZE": "2",
            "SMALTI_GROUP_LEADER": HOST,
            "SMALTI_GROUP_PORT": str(free_port()),
            "SMALTI_GROUP_COORDINATOR_PORT": str(free_port()),
            "SMALTI_GROUP_SECRET": "only this test knows it",
            "SMALTI_GROUP_WAIT": "100",
            "SMALTI_GENERATOR_MESH": "1x2",
            "SMALTI_SERVICE_SLOTS": "8",
            # A message of a process that was killed is delivered again after this time.
            "SMALTI_BROKER_VISIBILITY_TIMEOUT": "6",
        }
        self.leader, self.follower = (
            ServiceProcess(
                "generator",
                broker=valkey.url,
                store=s3.url,
                model=model.path,
                environment={**shared, "SMALTI_GROUP_INDEX": str(index)},
            )
            for index in range(2)
        )

    def launch(self) -> None:
        """Starts both, the follower first, and waits until both serve."""
        self.follower.launch()
        self.leader.launch()
        self.wait_until_ready()

    def launch_slowly(self) -> None:
        """Starts both as `launch` does; each dispatch then takes a second, so that work can be interrupted."""
        self.leader.environment["SMALTI_FAILPOINTS"] = "generate.engine-step=sleep:1"
        self.launch()
        del self.leader.environment["SMALTI_FAILPOINTS"]

    def wait_until_ready(self) -> None:
        self.leader.wait_until_ready()
        self.follower.wait_until_ready()


class Work:
    """A task for a generator, and its events."""

    def __init__(
        self, store: ObjectStore, model: ModelFolder, publisher: BrokerPublisher, pipeline: Pipeline
    ) -> None:
        self._store, self._model = store, model
        self._publisher, self._pipeline = publisher, pipeline

    def publish(self, job: str) -> None:
        """Publishes the task."""
        encoded = encoding_bytes(self._pipeline.encoder.encode(PROMPT))
        encoding = put_named(self._store, JobKeys(job).encoding, encoded)
        [generate] = task(job, PROMPT, model=self._model, seed=SEED, chunks=(CHUNK,)).next(encoding, PROMPT)
        self._publisher.publish(generate)

    def until(self, kind: type[Event]) -> Event:
        """Waits for an event of this kind, and returns it; no other one of its kind has come with it."""
        found = gather(
            lambda: events(self._publisher.settings),
            lambda found: any(isinstance(each, kind) for each in found),
        )
        [event] = [each for each in found if isinstance(each, kind)]
        return event

    def check_done(self) -> None:
        """Waits until the task is done, at its first attempt, and compares the tokens with those of one process."""
        done = self.until(StageDone)
        assert (done.stage, done.attempt) == (Stage.GENERATE, 1)
        expected = self._pipeline.generate_candidates(
            PROMPT, range(4), seed=SEED, sampling=self._model.sampling, total=4
        )
        tokens = load_tokens(self._store, done.objects[0], 4, ModelSpec.load(self._model))
        np.testing.assert_array_equal(tokens, [picture.tokens for picture in expected])


@pytest.fixture
def group(valkey: ValkeyServer, s3: S3Server, tiny: ModelFolder) -> Iterator[Group]:
    made = Group(valkey, s3, tiny)
    with ExitStack() as stack:
        for process in (made.leader, made.follower):
            stack.callback(process.stop)
        yield made


@pytest.fixture
def work(store: ObjectStore, tiny: ModelFolder, publisher: BrokerPublisher, pipeline: Pipeline) -> Work:
    return Work(store, tiny, publisher, pipeline)


def test_two_processes_serve_one_model_and_lose_nothing(group: Group, work: Work) -> None:
    group.launch_slowly()
    work.publish("grouped")
    work.until(Progress)
    # In the middle of the work the follower is gone; the leader gives the work back and ends.
    group.follower.kill()
    assert group.leader.wait() == 1
    assert "process 1 of the group" in group.leader.log.read_text()
    # The next group takes the work. Asked to stop, its follower has the leader drain, and ends after it.
    group.launch()
    work.check_done()
    assert group.follower.health() == SERVING
    group.follower.tell()
    assert (group.leader.wait(), group.follower.wait()) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dies", "silence", "reason"),
    [
        # Neither this silence nor JAX's own heartbeat, of 100 seconds, would end the follower in time.
        pytest.param(ServiceProcess.kill, 600, "has ended|Terminating process", id="killed"),
        # Its connections stay open, as those of a host that is lost, so that JAX notices nothing yet.
        pytest.param(ServiceProcess.pause, 15, "has said nothing for 15 s", id="frozen"),
    ],
)
def test_next_group_does_the_work_of_a_leader_that_dies(
    dies: Callable[[ServiceProcess], None], silence: int, reason: str, group: Group, work: Work
) -> None:
    for process in (group.leader, group.follower):
        process.environment["SMALTI_GROUP_SILENCE"] = str(silence)
    group.launch_slowly()
    work.publish(f"orphaned-{silence}")
    work.until(Progress)
    dies(group.leader)
    # JAX may be the first to notice a closed connection, and aborts.
    assert group.follower.wait() in (1, -signal.SIGABRT)
    assert re.search(reason, group.follower.log.read_text())
    group.leader.kill()
    group.launch()
    work.check_done()
    assert (group.leader.health(), group.follower.health()) == (SERVING, SERVING)
