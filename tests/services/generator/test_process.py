"""The generator as a process that crashes and drains."""

from typing import Any

import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from harness.objects import put_named
from harness.queue import events, gather, task
from harness.servers import S3Server, ValkeyServer
from harness.service_process import NOT_SERVING, ONCE, SERVING, ServiceProcess
from smalti.messages import Chunk, Progress, Stage, StageDone
from smalti.pipeline import Pipeline
from smalti.queue import BrokerPublisher
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.rpc.channel import blocking_channel
from smalti.service.objects import encoding_bytes, load_tokens
from smalti.storage import JobKeys, ObjectStore
from tests.services.generator.conftest import PROMPT

SEED = 7
CHUNK = Chunk(chunk=0, candidates=(0, 1, 2, 3))


def test_generator_loses_nothing_when_it_crashes_or_drains(
    valkey: ValkeyServer,
    s3: S3Server,
    store: ObjectStore,
    tiny: ModelFolder,
    publisher: BrokerPublisher,
    pipeline: Pipeline,
) -> None:
    keys = JobKeys("dies")
    encoding = put_named(store, keys.encoding, encoding_bytes(pipeline.encoder.encode(PROMPT)))
    [generate] = task("dies", PROMPT, model=tiny, seed=SEED, chunks=(CHUNK,)).next(encoding, PROMPT)
    generator = ServiceProcess("generator", broker=valkey.url, store=s3.url, model=tiny.path)
    generator.environment = {"SMALTI_FAILPOINTS": "generate.engine-step=raise"}
    with generator, blocking_channel(generator.url, ONCE) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        healths = stub.Watch(health_pb2.HealthCheckRequest())
        assert next(healths).status == SERVING
        publisher.publish(generate)
        assert next(healths).status == NOT_SERVING
        assert generator.wait() == 1
        assert "its engine has stopped" in generator.log.read_text()
        # Now it is slow, and stopped in the middle of the work. Neither counts as an attempt.
        generator.environment = {
            "SMALTI_FAILPOINTS": "generate.engine-step=sleep:2",
            "SMALTI_BROKER_DRAIN": "1",
        }
        generator.start()
        found = gather(
            lambda: events(publisher.settings),
            lambda found: any(isinstance(each, Progress) for each in found),
        )
        progress = next(event for event in found if isinstance(event, Progress))
        assert (progress.rows, progress.of) == (1, 4)
        assert generator.end() == 0
        generator.environment = {}
        generator.start()
        found = gather(
            lambda: events(publisher.settings),
            lambda found: any(isinstance(each, StageDone) for each in found),
        )
    [done] = [event for event in found if isinstance(event, StageDone)]
    assert (done.stage, done.attempt) == (Stage.GENERATE, 1)
    expected = pipeline.generate_candidates(PROMPT, range(4), seed=SEED, sampling=tiny.sampling, total=4)
    tokens = load_tokens(store, done.objects[0], 4, ModelSpec.load(tiny))
    np.testing.assert_array_equal(tokens, [picture.tokens for picture in expected])
    assert progress.tokens == tuple(tuple(picture.tokens[:4].tolist()) for picture in expected)
