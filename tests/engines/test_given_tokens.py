"""Given tokens in the engine: kept wherever they are, without a trace in what is drawn elsewhere."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.generator.given import kept_by
from smalti.engines.generator.requests import GenerationRequest
from smalti.models.bart import DalleBart
from smalti.parameters import FREE
from tests.engines.conftest import SLOTS, WAIT, GatedBatch, opened, request

HOLES = (
    (0,),
    (2, 3, 9),
    (15,),
    (4, 5, 6, 7),
    tuple(range(0, 16, 2)),
    tuple(range(1, 16)),
    tuple(range(6, 16)),
)
"""Positions that are drawn anew: the first, some, the last, a row, every other, all but one, the lower part."""


def without(tokens: Sequence[int], free: Sequence[int]) -> tuple[int, ...]:
    """Returns tokens without those of some positions."""
    return tuple(FREE if place in free else int(token) for place, token in enumerate(tokens))


@pytest.mark.parametrize("steps_per_dispatch", [1, 3, 4, 16])
def test_given_tokens_are_kept_wherever_they_are(
    model: tuple[DalleBart, Any], alone: np.ndarray, steps_per_dispatch: int
) -> None:
    """Candidate 0 has its own tokens around the holes, so they are filled as they were; the others have those too."""
    with opened(model, steps_per_dispatch=steps_per_dispatch) as engine:
        handles = [engine.submit(request(model, 3, given=without(alone[0], free))) for free in HOLES]
        for free, handle in zip(HOLES, handles, strict=True):
            drawn = handle.result(WAIT)
            np.testing.assert_array_equal(drawn[0], alone[0])
            kept = [place for place in range(16) if place not in free]
            np.testing.assert_array_equal(drawn[:, kept], alone[[0, 0, 0]][:, kept])
        assert len({tuple(row) for row in handles[4].result(WAIT).tolist()}) == 3


def test_free_tokens_are_those_that_follow_the_tokens_before_them(
    model: tuple[DalleBart, Any], alone: np.ndarray
) -> None:
    """Each free token is the one that is sampled at its position after the same tokens, when all of them are given."""
    with opened(model) as engine:
        free = (0, 2, 3, 9, 15)
        drawn = engine.submit(request(model, 2, given=without(alone[5], free))).result(WAIT)[1]
        assert not np.array_equal(drawn, alone[5])
        whole = request(model, 2)
        for place in free:
            before = tuple(int(token) for token in drawn[:place])
            one = dataclasses.replace(whole.candidates[1], given=before)
            again = engine.submit(GenerationRequest(encodings=whole.encodings, candidates=(one,))).result(
                WAIT
            )
            assert again[0, place] == drawn[place]


def test_given_tokens_do_not_reach_neighbours_or_the_next_in_the_slot(
    model: tuple[DalleBart, Any], gated: tuple[GeneratorEngine, GatedBatch], alone: np.ndarray
) -> None:
    engine, batch = gated
    edited = engine.submit(request(model, 2, given=without([7] * 16, (1, 8))))
    plain = engine.submit(request(model, 6))
    batch.open_gate()
    np.testing.assert_array_equal(plain.result(WAIT), alone[:6])
    assert (edited.result(WAIT) == 7).sum() >= 28


def test_request_that_is_begun_again_is_the_same(
    model: tuple[DalleBart, Any], gated: tuple[GeneratorEngine, GatedBatch], alone: np.ndarray
) -> None:
    engine, batch = gated
    asked = request(model, SLOTS, given=without(alone[9], (1, 2, 5, 6, 11)))
    interrupted = engine.submit(asked)
    assert batch.stepping.acquire(timeout=WAIT)
    batch.open_gate(2)
    for _ in range(2):
        assert batch.stepping.acquire(timeout=WAIT)
    interrupted.cancel()
    again = engine.submit(asked)
    batch.open_gate()
    drawn = again.result(WAIT)
    for index, candidate in enumerate(asked.candidates):
        one = GenerationRequest(encodings=asked.encodings, candidates=(candidate,))
        np.testing.assert_array_equal(engine.submit(one).result(WAIT)[0], drawn[index])


def test_runs_have_the_given_tokens_between_free_ones(
    model: tuple[DalleBart, Any], gated: tuple[GeneratorEngine, GatedBatch], alone: np.ndarray
) -> None:
    engine, batch = gated
    handle = engine.submit(request(model, 1, given=without(alone[0], (6, 13))))
    batch.open_gate()
    runs = list(handle.runs())
    # A row and a half at the beginning is given, and not sent.
    assert [run.start for run in runs] == [6, 10, 14]
    np.testing.assert_array_equal(np.concatenate([run.tokens for run in runs]), alone[0, 6:])


def test_each_candidate_of_a_variation_keeps_other_tokens(
    model: tuple[DalleBart, Any], gated: tuple[GeneratorEngine, GatedBatch], alone: np.ndarray
) -> None:
    engine, batch = gated
    batch.open_gate()
    whole = request(model, 6)
    given = [kept_by(alone[0].tolist(), 0.25, 1, index) for index in range(6)]
    assert len(set(given)) == 6
    candidates = tuple(
        dataclasses.replace(each, given=tokens) for each, tokens in zip(whole.candidates, given, strict=True)
    )
    drawn = engine.submit(GenerationRequest(encodings=whole.encodings, candidates=candidates)).result(WAIT)
    for row, tokens in zip(drawn, given, strict=True):
        kept = np.array(tokens) != FREE
        assert kept.sum() == 12
        np.testing.assert_array_equal(row[kept], alone[0][kept])
    np.testing.assert_array_equal(drawn[0], alone[0])
