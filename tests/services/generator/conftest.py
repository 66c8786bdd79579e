"""What the tests of the generator share: a running engine that failpoints can slow down, and an encoding."""

from collections.abc import Iterator

import pytest

from harness.generator import TokenCounter
from smalti.engines.generator.engine import GeneratorEngine
from smalti.pipeline import Pipeline
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.rpc.conversion import encoding_message
from smalti.service import failpoints
from smalti.service.model import model_reference
from smalti.services.generator.failing_batch import FailingBatch
from smalti.text.rewording import Rewording
from smalti.v1.encoder_pb2 import Encoding

PROMPT = "a red fox"
SLOTS = 4


@pytest.fixture(scope="module")
def engine(tiny: ModelFolder, pipeline: Pipeline) -> Iterator[GeneratorEngine]:
    """A generator with few slots and a short queue; failpoints can slow it down."""
    loaded = GeneratorEngine.load(
        ModelSpec.load(tiny), pipeline.encoder.unconditional, slots=SLOTS, max_waiting=6, stall_seconds=60.0
    )
    loaded.batch = FailingBatch(loaded.batch)
    loaded.start()
    assert loaded.ready.wait(120)
    yield loaded
    loaded.close()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Slows down every dispatch."""
    monkeypatch.setenv(failpoints.VARIABLE, "generate.engine-step=sleep:0.1")
    failpoints.arm()
    yield
    monkeypatch.undo()
    failpoints.arm()


@pytest.fixture
def generated(engine: GeneratorEngine) -> Iterator[TokenCounter]:
    """Counts the tokens that the engine generates during the test."""
    engine.observer = counter = TokenCounter()
    yield counter
    engine.observer = None


@pytest.fixture(scope="module")
def encoding(tiny: ModelFolder, pipeline: Pipeline) -> Encoding:
    model = model_reference(tiny.name, tiny.revision)
    return encoding_message(pipeline.encoder.encode(PROMPT), model, Rewording(PROMPT))
