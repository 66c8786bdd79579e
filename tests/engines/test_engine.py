"""The generator's loop: scheduling, cancellation, and failures."""

import threading
import time
from typing import Any

import numpy as np
import pytest

from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.generator.scheduler import BATCH_TURN
from smalti.errors import EngineFailedError, EngineFullError, RequestCancelledError, RequestExpiredError
from smalti.models.bart import DalleBart
from smalti.parameters import Priority
from tests.engines.conftest import SLOTS, WAIT, GatedBatch, make, opened, request


@pytest.mark.parametrize("steps_per_dispatch", [1, 3, 4, 16])
def test_tokens_are_the_same_with_any_steps_per_dispatch_and_in_a_full_batch(
    model: tuple[DalleBart, Any], alone: np.ndarray, steps_per_dispatch: int
) -> None:
    with opened(model, steps_per_dispatch=steps_per_dispatch) as engine:
        np.testing.assert_array_equal(engine.submit(request(model, 10)).result(WAIT), alone)


def test_tokens_are_the_same_when_admitted_late(
    model: tuple[DalleBart, Any], gated: tuple[GeneratorEngine, GatedBatch], alone: np.ndarray
) -> None:
    engine, batch = gated
    early = engine.submit(request(model, 2, seed=9, row=1))
    batch.stepping.acquire(timeout=WAIT)
    batch.open_gate(
        2
    )  # The late request begins while the others are in the middle of a picture, in the free slots.
    for _ in range(2):
        assert batch.stepping.acquire(timeout=WAIT)
    late = engine.submit(request(model, 3))
    batch.open_gate()
    np.testing.assert_array_equal(late.result(WAIT), alone[:3])
    np.testing.assert_array_equal(
        early.result(WAIT), engine.submit(request(model, 2, seed=9, row=1)).result(WAIT)
    )


def test_tokens_are_yielded_as_they_are_generated(
    model: tuple[DalleBart, Any], gated: tuple[GeneratorEngine, GatedBatch], alone: np.ndarray
) -> None:
    engine, batch = gated
    handle = engine.submit(request(model, 1))
    rows = handle.runs()
    for number in range(4):
        batch.open_gate(1)
        drawn = next(rows)
        assert (drawn.candidate, drawn.start) == (0, 4 * number)
        np.testing.assert_array_equal(drawn.tokens, alone[0, 4 * number : 4 * number + 4])
    assert list(rows) == []


def test_given_tokens_are_continued(model: tuple[DalleBart, Any], alone: np.ndarray) -> None:
    with opened(model) as engine:
        for length in (1, 6, 15):
            given = tuple(int(token) for token in alone[0, :length])
            # Candidate 0 continues its own tokens, candidate 1 those of another candidate.
            drawn = engine.submit(request(model, 2, given=given)).result(WAIT)
            np.testing.assert_array_equal(drawn[0], alone[0])
            np.testing.assert_array_equal(drawn[1, :length], alone[0, :length])
        whole = tuple(int(token) for token in alone[0])
        np.testing.assert_array_equal(engine.submit(request(model, 1, given=whole)).result(WAIT), alone[:1])


def test_cancelled_request_frees_its_slots_within_one_dispatch(
    model: tuple[DalleBart, Any], gated: tuple[GeneratorEngine, GatedBatch], alone: np.ndarray
) -> None:
    engine, batch = gated
    handle = engine.submit(request(model, SLOTS, seed=2))
    assert batch.stepping.acquire(timeout=WAIT)
    waiting = engine.submit(request(model, 2))
    handle.cancel()
    with pytest.raises(RequestCancelledError):
        handle.result(WAIT)
    batch.open_gate(1)
    assert batch.stepping.acquire(timeout=WAIT)
    assert sorted(batch.freed) == list(range(SLOTS))
    assert batch.begun[SLOTS:] == [(1, 0), (1, 1)]
    batch.open_gate()
    np.testing.assert_array_equal(waiting.result(WAIT), alone[:2])


def test_waiting_request_can_be_cancelled(
    model: tuple[DalleBart, Any], gated: tuple[GeneratorEngine, GatedBatch]
) -> None:
    engine, batch = gated
    first = engine.submit(request(model, SLOTS, seed=2))
    second = engine.submit(request(model, 2, seed=3))
    second.cancel()
    with pytest.raises(RequestCancelledError):
        next(second.runs())
    batch.open_gate()
    first.result(WAIT)
    assert {seed for seed, _ in batch.begun} == {2}


def test_expired_request_is_not_generated(
    model: tuple[DalleBart, Any], gated: tuple[GeneratorEngine, GatedBatch]
) -> None:
    engine, batch = gated
    expired = engine.submit(request(model, 2, seed=5, deadline=time.monotonic()))
    with pytest.raises(RequestExpiredError):
        expired.result(WAIT)
    batch.open_gate()
    engine.submit(request(model, 1)).result(WAIT)
    assert {seed for seed, _ in batch.begun} == {1}


def test_full_queue_refuses_at_once_with_a_retry_delay(
    model: tuple[DalleBart, Any], gated: tuple[GeneratorEngine, GatedBatch]
) -> None:
    engine, batch = gated
    engine.submit(request(model, SLOTS))
    assert batch.stepping.acquire(timeout=WAIT)
    waiting = engine.submit(request(model, 8, seed=2))
    with pytest.raises(EngineFullError, match="8 candidates are already waiting") as full:
        engine.submit(request(model, 1, seed=3))
    assert full.value.retry_after >= 1
    assert engine.waiting == 8
    batch.open_gate()
    waiting.result(WAIT)
    engine.submit(request(model, 1, seed=3)).result(WAIT)


def test_request_larger_than_slots_and_queue_is_generated(
    model: tuple[DalleBart, Any], gated: tuple[GeneratorEngine, GatedBatch]
) -> None:
    engine, batch = gated
    batch.open_gate()
    drawn = engine.submit(request(model, 30)).result(WAIT)
    assert len({tuple(row) for row in drawn.tolist()}) == 30


def test_interactive_goes_first(
    model: tuple[DalleBart, Any], gated: tuple[GeneratorEngine, GatedBatch]
) -> None:
    engine, batch = gated
    engine.submit(request(model, SLOTS, seed=100))
    assert batch.stepping.acquire(timeout=WAIT)
    slow = engine.submit(request(model, 2, seed=200, priority=Priority.BATCH))
    quick = [engine.submit(request(model, 1, seed=seed)) for seed in range(6)]
    batch.open_gate()
    for handle in (*quick, slow):
        handle.result(WAIT)
    order = [seed for seed, _ in batch.begun[SLOTS:]]
    assert order[:6] == list(range(6))


def test_batch_gets_its_share_while_interactive_requests_wait(
    model: tuple[DalleBart, Any], gated: tuple[GeneratorEngine, GatedBatch]
) -> None:
    engine, batch = gated
    engine._queue.max_candidates = 1000
    blocker = engine.submit(request(model, SLOTS, seed=100))
    assert batch.stepping.acquire(timeout=WAIT)
    slow = engine.submit(request(model, 3, seed=200, priority=Priority.BATCH))
    quick = engine.submit(request(model, 4 * BATCH_TURN, seed=1))
    batch.open_gate()
    for handle in (blocker, slow, quick):
        handle.result(WAIT)
    order = [seed for seed, _ in batch.begun[SLOTS:]]
    assert [index for index, seed in enumerate(order) if seed == 200] == [
        turn * BATCH_TURN - 1 for turn in range(1, 4)
    ]


def test_dead_loop_fails_every_request_with_the_cause(
    model: tuple[DalleBart, Any], gated: tuple[GeneratorEngine, GatedBatch]
) -> None:
    engine, batch = gated
    running, waiting = (engine.submit(request(model, SLOTS, seed=seed)) for seed in (1, 2))
    assert engine.healthy
    batch.error = MemoryError("the device is full")
    batch.open_gate()
    for handle in (running, waiting):
        with pytest.raises(EngineFailedError, match="the device is full") as failed:
            handle.result(WAIT)
        assert isinstance(failed.value.__cause__, MemoryError)
    assert not engine.healthy
    with pytest.raises(EngineFailedError, match="the device is full"):
        engine.submit(request(model, 1))


def test_hanging_loop_fails_its_requests(model: tuple[DalleBart, Any]) -> None:
    batch = make(model)
    engine = GeneratorEngine(batch, stall_seconds=0.5)
    engine.start()
    assert engine.ready.wait(WAIT)
    handle = engine.submit(request(model, 1))
    with pytest.raises(EngineFailedError, match="no progress"):
        handle.result(WAIT)
    assert isinstance(engine.failure, TimeoutError)
    batch.open_gate()
    engine.close()


def test_idle_engine_is_healthy(model: tuple[DalleBart, Any]) -> None:
    batch = make(model)
    batch.open_gate()
    engine = GeneratorEngine(batch, stall_seconds=4.0)
    engine.submit(request(model, 1)).result(WAIT)
    engine.timing.last_beat -= 1000
    # The watchdog checks every second; this event is never set.
    assert not threading.Event().wait(2.5)
    assert engine.healthy
    engine.timing.last_beat -= 1000
    engine.submit(request(model, 1)).result(WAIT)
    engine.close()


def test_closed_engine_fails_its_requests_and_accepts_no_others(
    model: tuple[DalleBart, Any], gated: tuple[GeneratorEngine, GatedBatch]
) -> None:
    engine, batch = gated
    handle = engine.submit(request(model, 1))
    assert batch.stepping.acquire(timeout=WAIT)
    closing = threading.Thread(target=engine.close)
    closing.start()
    batch.open_gate(1)
    closing.join(WAIT)
    assert not closing.is_alive()
    with pytest.raises(EngineFailedError, match="closed"):
        handle.result(WAIT)
    with pytest.raises(EngineFailedError, match="closed"):
        engine.submit(request(model, 1))


def test_no_thread_outlives_a_closed_engine(model: tuple[DalleBart, Any]) -> None:
    ended = []

    class SlowToEnd(GeneratorEngine):
        def _watch(self) -> None:
            super()._watch()
            assert not threading.Event().wait(0.5)  # This event is never set.
            ended.append("watch")

    batch = make(model)
    batch.open_gate()
    engine = SlowToEnd(batch)
    engine.submit(request(model, 1)).result(WAIT)
    engine.close()
    assert ended == ["watch"]


def test_request_without_candidates_is_done_at_once(
    model: tuple[DalleBart, Any], gated: tuple[GeneratorEngine, GatedBatch]
) -> None:
    engine, _ = gated
    handle = engine.submit(request(model, 0))
    assert handle.result(0.0).shape == (0, 16)
    assert list(handle.runs()) == []
