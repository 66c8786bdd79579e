"""A generator in two processes: one model, split over both, serves the queue; no work is lost when a process ends."""

from collections.abc import Iterator
from contextlib import ExitStack

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

    def wait_until_ready(self) -> None:
        self.leader.wait_until_ready()
        self.follower.wait_until_ready()


@pytest.fixture
def group(valkey: ValkeyServer, s3: S3Server, tiny: ModelFolder) -> Iterator[Group]:
    made = Group(valkey, s3, tiny)
    with ExitStack() as stack:
        for process in (made.leader, made.follower):
            stack.callback(process.stop)
        yield made


def test_two_processes_serve_one_model_and_lose_nothing(
    group: Group, store: ObjectStore, tiny: ModelFolder, publisher: BrokerPublisher, pipeline: Pipeline
) -> None:
    encoding = put_named(store, JobKeys("grouped").encoding, encoding_bytes(pipeline.encoder.encode(PROMPT)))
    [generate] = task("grouped", PROMPT, model=tiny, seed=SEED, chunks=(CHUNK,)).next(encoding, PROMPT)

    def until(kind: type[Message]) -> list[Message]:
        return gather(
            lambda: events(publisher.settings), lambda found: any(isinstance(each, kind) for each in found)
        )

    group.leader.environment["SMALTI_FAILPOINTS"] = "generate.engine-step=sleep:1"
    group.launch()
    publisher.publish(generate)
    until(Progress)
    # In the middle of the work the follower is gone; the leader gives the work back and ends.
    group.follower.kill()
    assert group.leader.wait() == 1
    assert "process 1 of the group" in group.leader.log.read_text()
    # The next group takes the work. Asked to stop, its follower has the leader drain, and ends after it.
    group.leader.environment.pop("SMALTI_FAILPOINTS")
    group.launch()
    found = until(StageDone)
    [done] = [event for event in found if isinstance(event, StageDone)]
    assert (done.stage, done.attempt) == (Stage.GENERATE, 1)
    expected = pipeline.generate_candidates(PROMPT, range(4), seed=SEED, sampling=tiny.sampling, total=4)
    tokens = load_tokens(store, done.objects[0], 4, ModelSpec.load(tiny))
    np.testing.assert_array_equal(tokens, [picture.tokens for picture in expected])
    assert group.follower.health() == SERVING
    group.follower.tell()
    assert (group.leader.wait(), group.follower.wait()) == (0, 0)
