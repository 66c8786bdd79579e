"""What the tests of the services share: the object store that service processes use, and stages without processes."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.paths import SAMPLES
from harness.policy import install_package
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
        compute = ComputeThread(max_permits=4, stall_seconds=60, check=lambda: None)
        stack.callback(compute.close)
        made = RealStages(folder=worded, pipeline=pipeline, generator=generator, compute=compute)
        stack.callback(made.close)
        yield made


@pytest.fixture(scope="session")
def one_process(worded: ModelFolder, pipeline: Pipeline, stages: RealStages) -> Pipeline:
    """The engines of the stages in one process."""
    return Pipeline(
        folder=worded,
        encoder=pipeline.encoder,
        generator=stages.generator,
        decoder=pipeline.decoder,
        ranker=pipeline.ranker,
        refiner=stages.refiner,
        rewriter=stages.rewriter,
    )


@pytest.fixture(scope="session")
def policy_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an installed package with entry points that are policies."""
    folder = tmp_path_factory.mktemp("package")
    install_package(SAMPLES / "policy_package", folder)
    return folder


@pytest.fixture
def installed(policy_package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package can be imported."""
    monkeypatch.syspath_prepend(str(policy_package))
    yield
    sys.modules.pop("sample_policy", None)
