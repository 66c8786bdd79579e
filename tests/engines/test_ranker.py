"""Ranking pictures by their scores."""

import numpy as np
import pytest
from PIL import Image

from smalti.engines.ranker import RankerEngine
from smalti.models.clip import Clip
from smalti.selection import best
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
