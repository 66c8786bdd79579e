"""What the tests of the services share: the object store that service processes use, and stages without processes."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from harness.servers import S3Server
from harness.stages import RealStages
from smalti.engines.generator.engine import GeneratorEngine
from smalti.pipeline import Pipeline
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.service.compute import ComputeThread
from smalti.storage import ObjectStore, StoreSettings, open_store


@pytest.fixture(scope="session")
def store(s3: S3Server) -> ObjectStore:
    """The content of the object store."""
    return open_store(StoreSettings(url=s3.url))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def stages(worded: ModelFolder, pipeline: Pipeline) -> Iterator[RealStages]:
    """The four stages of a tiny model with words."""
    with ExitStack() as stack:
        generator = GeneratorEngine.load(
            ModelSpec.load(worded),
            pipeline.encoder.unconditional,
            slots=16,
            max_waiting=16,
            stall_seconds=60.0,
        )
        stack.callback(generator.close)
        generator.start()
        assert generator.ready.wait(120)
        compute = ComputeThread(max_permits=4, stall_seconds=60)
        stack.callback(compute.close)
        made = RealStages(folder=worded, pipeline=pipeline, generator=generator, compute=compute)
        stack.callback(made.close)
        yield made
