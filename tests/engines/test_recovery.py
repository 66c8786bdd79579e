"""The generator's loop, when something raises for one of its requests."""

import threading
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import jax
import numpy as np
import pytest
from jaxtyping import Int

from smalti.engines.encoding import Encoding
from smalti.engines.generator.batch import DecodeBatch
from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.generator.requests import Candidate, TokenRun
from smalti.engines.generator.state import Prefix
from smalti.errors import EngineFailedError, RequestCancelledError, RequestFailedError
from smalti.models.bart import DalleBart
from tests.engines.conftest import SLOTS, WAIT, GatedBatch, make, request

POISON = 666


class PoisonedBatch(GatedBatch):
    """A batch whose steps fail once a candidate with the seed `POISON` is at a certain position."""

    at = 0
    """Position from which its steps fail."""
    keeps_state = True
    """Whether a step that fails leaves the state; a device that runs out of memory may take it away."""
    poisoned: set[int]
    failures = 0
    steps = 0

    def insert(self, prefix: Prefix, slots: Sequence[int], candidates: Sequence[Candidate]) -> None:
        for slot, candidate in zip(slots, candidates, strict=True):
            (self.poisoned.add if candidate.seed == POISON else self.poisoned.discard)(slot)
        super().insert(prefix, slots, candidates)

    def release(self, slots: Sequence[int]) -> None:
        super().release(slots)
        self.poisoned.difference_update(slots)

    def reset(self) -> None:
        super().reset()
        self.poisoned = set()

    def step(self) -> Int[np.ndarray, "slots steps"]:
        self.steps += 1
        if any(self._positions[slot] >= self.at for slot in self.poisoned):
            self.gate.acquire()
            self.failures += 1
            if not self.keeps_state:
                for each in jax.tree.leaves(self._state):
                    each.delete()
            raise RuntimeError("the step fails")
        return super().step()


def poisoned(model: tuple[DalleBart, Any], **attributes: Any) -> PoisonedBatch:
    batch = make(model)
    batch.__class__ = PoisonedBatch
    attributes["poisoned"] = set()
    for name, value in attributes.items():
        setattr(batch, name, value)
    return batch  # type: ignore[return-value]


@pytest.mark.parametrize("keeps_state", [True, False])
@pytest.mark.parametrize("at", [0, 8])
def test_request_over_which_steps_fail_ends_alone(
    model: tuple[DalleBart, Any], alone: np.ndarray, at: int, keeps_state: bool
) -> None:
    batch = poisoned(model, at=at, keeps_state=keeps_state)
    with closing(GeneratorEngine(batch)) as engine:
        innocents = [engine.submit(request(model, 1)) for _ in range(2)]
        # Its first candidate is in the batch with them; the second follows once a slot is free.
        guilty = engine.submit(request(model, SLOTS, seed=POISON))
        later = [engine.submit(request(model, 2)) for _ in range(3)]
        batch.open_gate()
        with pytest.raises(RequestFailedError) as failed:
            guilty.result(WAIT)
        assert isinstance(failed.value.__cause__, RuntimeError)
        for handle in innocents:
            np.testing.assert_array_equal(handle.result(WAIT), alone[:1])
            # Each token is told once, although it was generated several times.
            assert [(run.start, len(run.tokens)) for run in handle.runs()] == [(4 * n, 4) for n in range(4)]
        for handle in later:
            np.testing.assert_array_equal(handle.result(WAIT), alone[:2])
        assert engine.healthy
        assert not engine.waiting
        # Among three requests: all, two, one, and that one alone.
        assert batch.failures <= 4


def test_every_guilty_request_is_found(model: tuple[DalleBart, Any], alone: np.ndarray) -> None:
    batch = poisoned(model, at=4, keeps_state=False)
    with closing(GeneratorEngine(batch)) as engine:
        handles = [engine.submit(request(model, 1, seed=seed)) for seed in (POISON, 1, POISON, 1) * 2]
        batch.open_gate()
        for number, handle in enumerate(handles):
            if number % 2:
                np.testing.assert_array_equal(handle.result(WAIT), alone[:1])
            else:
                with pytest.raises(RequestFailedError):
                    handle.result(WAIT)
        assert engine.healthy


def test_step_that_fails_once_costs_nothing_but_time(
    model: tuple[DalleBart, Any], gated: tuple[GeneratorEngine, GatedBatch], alone: np.ndarray
) -> None:
    engine, batch = gated
    failing = iter([RuntimeError("once")])
    step = DecodeBatch.step

    def fail_once(self: Any) -> Int[np.ndarray, "slots steps"]:
        for error in failing:
            raise error
        return step(self)

    batch.step = fail_once.__get__(batch)  # type: ignore[method-assign]
    handles = [engine.submit(request(model, 1)) for _ in range(3)]
    for handle in handles:
        np.testing.assert_array_equal(handle.result(WAIT), alone[:1])


def test_suspect_that_is_cancelled_does_not_stop_the_search(
    model: tuple[DalleBart, Any], alone: np.ndarray
) -> None:
    batch = poisoned(model)
    with closing(GeneratorEngine(batch)) as engine:
        guilty = engine.submit(request(model, 1, seed=POISON))
        innocent = engine.submit(request(model, 1))
        guilty.cancel()
        batch.open_gate()
        with pytest.raises(RequestCancelledError):
            guilty.result(WAIT)
        np.testing.assert_array_equal(innocent.result(WAIT), alone[:1])


def test_prompt_that_cannot_be_admitted_ends_alone(model: tuple[DalleBart, Any], alone: np.ndarray) -> None:
    batch = make(model)
    bad = request(model, 2, row=1)
    prefill = batch.prefill

    def refuse(encoding: Encoding) -> Prefix:
        if encoding is bad.encodings[0]:
            raise MemoryError("the prompt does not fit")
        return prefill(encoding)

    batch.prefill = refuse  # type: ignore[method-assign]
    with closing(GeneratorEngine(batch)) as engine:
        running = engine.submit(request(model, 1))
        assert batch.stepping.acquire(timeout=WAIT)
        guilty, other = engine.submit(bad), engine.submit(request(model, 2))
        batch.open_gate()
        with pytest.raises(RequestFailedError):
            guilty.result(WAIT)
        np.testing.assert_array_equal(running.result(WAIT), alone[:1])
        np.testing.assert_array_equal(other.result(WAIT), alone[:2])
        # The others were not begun anew.
        assert batch.begun.count((1, 0)) == 2


def test_callback_that_raises_ends_its_request_alone(
    model: tuple[DalleBart, Any], gated: tuple[GeneratorEngine, GatedBatch], alone: np.ndarray
) -> None:
    engine, batch = gated

    def refuse(run: TokenRun) -> None:
        raise RuntimeError("the caller has gone")

    guilty = engine.submit(request(model, 2, seed=9), refuse)
    other = engine.submit(request(model, 2))
    batch.open_gate()
    with pytest.raises(RequestFailedError):
        guilty.result(WAIT)
    np.testing.assert_array_equal(other.result(WAIT), alone[:2])
    assert engine.healthy


def test_batch_that_fails_without_requests_ends_the_engine(model: tuple[DalleBart, Any]) -> None:
    batch = make(model)
    lost = threading.Event()
    step = type(batch).step

    def fail(self: Any) -> Int[np.ndarray, "slots steps"]:
        if lost.is_set():
            raise MemoryError("the device is lost")
        return step(self)

    batch.step = fail.__get__(batch)  # type: ignore[method-assign]
    with closing(GeneratorEngine(batch)) as engine:
        running, waiting = engine.submit(request(model, SLOTS)), engine.submit(request(model, 1))
        assert batch.stepping.acquire(timeout=WAIT)
        lost.set()
        batch.open_gate()
        for handle, begun in ((running, True), (waiting, False)):
            with pytest.raises(EngineFailedError, match="the device is lost"):
                handle.result(WAIT)
            assert handle.begun is begun
        assert not engine.healthy
