"""Ranking pictures by their scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from smalti.engines.ranker import RankerEngine, best
from smalti.models.clip import Clip
from smalti.testing.clip import tiny_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip(folder)
    return Clip.load(folder, device="cpu")


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_pictures_are_ranked_by_their_score(clip: Clip, batch_size: int) -> None:
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue", "white", "black")]
    scores = RankerEngine(clip, batch_size=batch_size).rank("a red cat", pictures)
    alone = [clip.scores("a red cat", [picture])[0] for picture in pictures]
    np.testing.assert_allclose(scores, alone, atol=1e-5)
    assert best(scores, 5) == sorted(range(5), key=lambda index: -alone[index])


def test_no_pictures_give_no_scores(clip: Clip) -> None:
    scores = RankerEngine(clip).rank("a red cat", [])
    assert scores.shape == (0,)
    assert best(scores, 9) == []


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


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, 30.0])), st.integers(0, 12))
def test_nothing_better_is_left_out(scores: list[float], n: int) -> None:
    chosen = best(scores, n)
    left = set(range(len(scores))) - set(chosen)
    assert len(chosen) == len(set(chosen)) == min(n, len(scores))
    keys = [(-scores[index], index) for index in chosen]
    assert keys == sorted(keys)
    assert all((-scores[index], index) > keys[-1] for index in left if keys)
