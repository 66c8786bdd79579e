"""What the tests of the generator share: a batch whose dispatches wait at a gate, and what is compiled meanwhile."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jaxtyping import Int

from smalti.compilation import PROGRAM_READ
from smalti.engines.encoding import Encoding
from smalti.engines.generator.batch import DecodeBatch
from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.generator.requests import Candidate, GenerationRequest
from smalti.engines.generator.state import Prefix
from smalti.models.bart import DalleBart
from smalti.parameters import SamplingParameters

VARIED = SamplingParameters(temperature=0.9, guidance_scale=3, top_k=30, top_p=0.95)
SLOTS = 4
WAIT = 60.0
_TRACED = "/jax/core/compile/jaxpr_trace_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"


class GatedBatch(DecodeBatch):
    """A batch whose dispatches wait at a gate; records the candidates that begin and the slots that are freed."""

    gate: threading.Semaphore
    stepping: threading.Semaphore
    begun: list[tuple[int, int]]
    freed: list[int]
    error: BaseException | None = None

    def step(self) -> Int[np.ndarray, "slots steps"]:
        self.stepping.release()
        self.gate.acquire()
        if self.error is not None:
            raise self.error
        return super().step()

    def insert(self, prefix: Prefix, slots: Sequence[int], candidates: Sequence[Candidate]) -> None:
        self.begun += [(candidate.seed, candidate.index) for candidate in candidates]
        super().insert(prefix, slots, candidates)

    def release(self, slots: Sequence[int]) -> None:
        self.freed += slots
        super().release(slots)

    def open_gate(self, dispatches: int = 10**6) -> None:
        self.gate.release(dispatches)


@pytest.fixture(scope="module")
def model(golden: Path) -> tuple[DalleBart, Any]:
    folder = golden / "dallebart_scan"
    return DalleBart.load(folder), np.load(folder / "expected.npz")


def make(model: tuple[DalleBart, Any], **options: Any) -> GatedBatch:
    bart, expected = model
    unconditional = Encoding(expected["uncond_encoder_hidden"][0], expected["uncond_attention_mask"][0])
    batch = GatedBatch(bart, unconditional, slots=SLOTS, **options)
    batch.gate, batch.stepping = threading.Semaphore(0), threading.Semaphore(0)
    batch.begun, batch.freed = [], []
    return batch


@contextmanager
def opened(model: tuple[DalleBart, Any], **options: Any) -> Iterator[GeneratorEngine]:
    """Yields an engine whose dispatches do not wait, and closes it."""
    batch = make(model, **options)
    batch.open_gate()
    with closing(GeneratorEngine(batch)) as engine:
        yield engine


@pytest.fixture
def gated(model: tuple[DalleBart, Any]) -> Iterator[tuple[GeneratorEngine, GatedBatch]]:
    """An engine that is warmed up, with its gate closed."""
    batch = make(model)
    engine = GeneratorEngine(batch, max_waiting=8)
    engine.start()
    assert engine.ready.wait(WAIT)
    yield engine, batch
    batch.open_gate()
    engine.close()


def request(
    model: tuple[DalleBart, Any],
    count: int,
    seed: int = 1,
    row: int = 0,
    given: tuple[int, ...] = (),
    **options: Any,
) -> GenerationRequest:
    _, expected = model
    encoding = Encoding(expected["encoder_hidden"][row], expected["attention_mask"][row])
    candidates = tuple(Candidate(seed, index, VARIED, given=given) for index in range(count))
    return GenerationRequest(encodings=(encoding,), candidates=candidates, **options)


@pytest.fixture(scope="module")
def alone(model: tuple[DalleBart, Any]) -> np.ndarray:
    """The tokens of ten candidates, generated one after the other."""
    whole = request(model, 10)
    with opened(model) as engine:
        drawn = [
            engine.submit(GenerationRequest(encodings=whole.encodings, candidates=(one,))).result(WAIT)
            for one in whole.candidates
        ]
    return np.concatenate(drawn)


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """What is traced, compiled or read from a folder during the test: by JAX itself, or by a `Program`."""
    counted: list[str] = []

    def listen(event: str, duration_secs: float, **about: Any) -> None:
        if event in (_TRACED, _COMPILED, PROGRAM_READ):
            counted.append(f"{event} {about}")

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield counted
    jax.monitoring.unregister_event_duration_listener(listen)
