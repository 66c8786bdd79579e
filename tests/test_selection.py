"""Choosing pictures by their scores, and by their difference from each other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.selection import best, choose


@pytest.mark.parametrize(
    ("scores", "n", "indices"),
    [
        ([1.0, 3.0, 2.0], 2, [1, 2]),
        ([1.0, 3.0, 2.0], 9, [1, 2, 0]),
        ([1.0, 3.0, 2.0], 0, []),
        ([2.0, 1.0, 2.0, 2.0], 3, [0, 2, 3]),
        ([0.0, -0.0, 0.0], 3, [0, 1, 2]),
        ([1.0, float("nan"), float("-inf"), 2.0], 4, [3, 0, 2, 1]),
        ([], 4, []),
    ],
)
def test_best_come_first_and_equal_scores_stay_in_order(
    scores: list[float], n: int, indices: list[int]
) -> None:
    assert best(scores, n) == indices
    assert best(np.asarray(scores, np.float32), n) == indices


@settings(deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, 30.0])), st.integers(0, 12))
def test_nothing_better_is_left_out(scores: list[float], n: int) -> None:
    chosen = best(scores, n)
    left = set(range(len(scores))) - set(chosen)
    assert len(chosen) == len(set(chosen)) == min(n, len(scores))
    keys = [(-scores[index], index) for index in chosen]
    assert keys == sorted(keys)
    assert all((-scores[index], index) > keys[-1] for index in left if keys)


def rows(*angles: float) -> np.ndarray:
    """Returns features in a plane, one row for each angle in degrees."""
    radians = np.deg2rad(angles)
    return np.stack([np.cos(radians), np.sin(radians)], 1).astype(np.float32)


# Two pairs of equal pictures, and one of its own.
ALIKE = rows(0, 0, 40, 40, 90)
SCORES = [9.0, 8.9, 8.5, 8.0, 5.0]


@pytest.mark.parametrize(
    ("diversity", "order"),
    [
        (0.0, [0, 1, 2, 3, 4]),
        # The copy of the best comes after another good one, and with more weight also after the worst.
        (0.4, [0, 2, 1, 3, 4]),
        (0.6, [0, 4, 2, 1, 3]),
        (1.0, [0, 4, 2, 1, 3]),
    ],
)
def test_different_pictures_are_chosen_before_copies(diversity: float, order: list[int]) -> None:
    for n in range(7):
        assert choose(SCORES, ALIKE, n, diversity) == order[:n]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(-50, 50), st.floats(0, 360)), max_size=9),
    st.integers(0, 12),
    st.floats(0, 1),
)
def test_the_best_comes_first_and_a_shorter_choice_begins_a_longer_one(
    candidates: list[tuple[float, float]], n: int, diversity: float
) -> None:
    scores, features = [score for score, _ in candidates], rows(*(angle for _, angle in candidates))
    everything = choose(scores, features, 99, diversity)
    assert sorted(everything) == list(range(len(candidates)))
    assert everything[:1] == best(scores, 1)
    assert choose(scores, features, n, diversity) == everything[:n]


def test_last_digits_and_the_scale_of_scores_make_no_difference() -> None:
    order = choose(SCORES, ALIKE, 5, 0.4)
    noise = np.random.default_rng(0).normal(0, 1e-6, ALIKE.shape)
    assert choose([score + 1e-6 for score in SCORES], ALIKE + noise, 5, 0.4) == order
    assert choose([score * 100 - 7 for score in SCORES], ALIKE * 3, 5, 0.4) == order


def test_equal_or_missing_scores_and_equal_pictures_are_in_order() -> None:
    same = rows(10, 10, 10)
    assert choose([1, 1, 1], same, 3, 0.5) == [0, 1, 2]
    nan = float("nan")
    assert choose([nan, nan, nan], rows(0, 1, 90), 3, 0.5) == [0, 2, 1]
    assert choose([nan, 2.0, float("-inf"), 3.0], rows(0, 0, 0, 0), 4, 0.5) == [3, 1, 2, 0]
