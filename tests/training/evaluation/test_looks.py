"""The figures of how pictures look: known values, and what raises and lowers them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from smalti.training.evaluation.looks import (
    distinct,
    frechet_distance,
    nearest_distance,
    variety,
    wobble,
)
from smalti.training.similarity import sharpness

ONES = np.ones(4)


def gray(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.repeat(values[..., None], 3, -1).astype(np.uint8)


def halves(soft: int = 0) -> NDArray[np.uint8]:
    """A picture that is black on the left and white on the right, with a ramp between."""
    line = np.interp(np.arange(64), [31.5 - soft, 31.5 + soft + 1e-9], [0, 255])
    return gray(np.broadcast_to(line, (1, 64, 64)))


def test_sharpness_is_the_gradient_of_an_outline() -> None:
    assert sharpness(halves()) == pytest.approx(127.5)
    assert sharpness(halves(soft=4)) < 40
    assert sharpness(gray(np.full((2, 8, 8), 7.0))) == pytest.approx([0, 0])


def test_wobble_is_what_flat_areas_do_and_outlines_do_not_count() -> None:
    flat = np.full((1, 32, 32), 100.0)
    assert wobble(gray(flat)) == pytest.approx(0)
    blotchy = flat + 4 * (np.indices((32, 32)).sum(0) % 2)
    assert wobble(gray(blotchy)) == pytest.approx(4)
    assert wobble(halves()) == pytest.approx(0)


def test_variety_is_nothing_for_copies_and_counts_in_deviations() -> None:
    assert variety(np.ones((3, 4), np.float32), ONES) == 0
    apart = np.stack([np.zeros(4), np.full(4, 2.0)])
    assert variety(apart, ONES) == pytest.approx(2)
    assert variety(apart, 2 * ONES) == pytest.approx(1)


def test_candidates_with_the_same_tokens_count_once() -> None:
    assert distinct(np.array([[1, 2], [1, 2], [1, 3]])) == 2


def test_frechet_distance_of_normal_clouds_is_the_known_one() -> None:
    drawn = np.random.default_rng(0).standard_normal((20_000, 4))
    assert frechet_distance(drawn, drawn, ONES) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(drawn, drawn + 3, ONES) == pytest.approx(4 * 9)
    # Of two deviations the distance is the square of their difference, for each feature.
    assert frechet_distance(drawn, 2 * drawn - drawn.mean(0), ONES) == pytest.approx(4, rel=0.02)


def test_nearest_distance_finds_copies() -> None:
    known = np.random.default_rng(1).standard_normal((50, 4))
    distances = nearest_distance(np.stack([known[7], known[7] + 10]), known, ONES)
    assert distances[0] == pytest.approx(0, abs=1e-6)
    assert distances[1] > 1
