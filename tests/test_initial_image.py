"""Pictures of which the pipeline keeps a part."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.gateway_calls import mask_file
from smalti.errors import InvalidInputError
from smalti.pipeline import LocalPicture, Pipeline


@pytest.fixture(scope="module")
def fox(pipeline: Pipeline) -> LocalPicture:
    return pipeline.generate("a fox", n=1, candidates=1, seed=3)[0]


def draw(pipeline: Pipeline, image: Any, **options: Any) -> dict[int, np.ndarray]:
    """Returns the tokens of four candidates."""
    drawn = pipeline.generate("a car", n=4, candidates=4, seed=5, initial_image=image, **options)
    return {picture.candidate: picture.tokens for picture in drawn}


def test_tiles_outside_the_mask_are_kept(pipeline: Pipeline, fox: LocalPicture, tmp_path: Path) -> None:
    (tmp_path / "hole.png").write_bytes(mask_file(32, (8, 0, 16, 32)))
    for mask in (mask_file(32, (8, 0, 16, 32)), tmp_path / "hole.png"):
        edited = draw(pipeline, fox, mask=mask)
        for tokens in edited.values():
            np.testing.assert_array_equal(
                np.delete(tokens, [1, 5, 9, 13]), np.delete(fox.tokens, [1, 5, 9, 13])
            )
        assert len({tuple(tokens) for tokens in edited.values()}) > 1
    rows = draw(pipeline, fox, keep_rows=3)
    lower = draw(pipeline, fox, mask=mask_file(32, (0, 24, 32, 32)))
    for candidate, tokens in rows.items():
        np.testing.assert_array_equal(tokens, lower[candidate])
        np.testing.assert_array_equal(tokens[:12], fox.tokens[:12])


def test_variations_keep_a_share_of_the_tiles(pipeline: Pipeline, fox: LocalPicture) -> None:
    for strength, kept in ((0.01, 15), (0.25, 12), (0.75, 4)):
        varied = draw(pipeline, fox, strength=strength)
        assert all((tokens == fox.tokens).sum() >= kept for tokens in varied.values())
        alone = pipeline.generate("a car", n=1, candidates=1, seed=5, initial_image=fox, strength=strength)
        np.testing.assert_array_equal(alone[0].tokens, varied[0])


def test_files_are_encoded(pipeline: Pipeline, fox: LocalPicture, tmp_path: Path) -> None:
    fox.save(tmp_path / "fox.png")
    encoded = pipeline.decoder.encode(np.asarray(fox.image)[None])[0]
    for image in (tmp_path / "fox.png", fox.to_png()):
        for tokens in draw(pipeline, image, keep_rows=2).values():
            np.testing.assert_array_equal(tokens[:8], encoded[:8])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {},
            "keep_rows: must be set for an initial image; give one of keep_rows, mask, redrawn_tiles, strength",
        ),
        (
            {"keep_rows": 2, "strength": 0.5},
            "strength: cannot be combined with keep_rows; give one of the two",
        ),
        ({"keep_rows": 4}, "keep_rows: must be between 1 and 3, got 4"),
        ({"strength": 1}, "strength: must be greater than 0"),
        ({"mask": mask_file(31)}, "mask: has 31 x 31 pixels; it must be as large as the picture: 32 x 32"),
        ({"mask": Path("none.png")}, "mask: none.png: cannot be read"),
        (
            {"initial_image": b"text", "keep_rows": 1},
            "initial_image: must be a picture in PNG, JPEG or WebP format",
        ),
        (
            {"initial_image": None, "strength": 0.5},
            "initial_image: is missing; strength tells which part of it is kept",
        ),
    ],
)
def test_wrong_arguments_are_named(
    pipeline: Pipeline, fox: LocalPicture, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidInputError) as refused:
        pipeline.generate("a car", **{"initial_image": fox, **options})
    assert str(refused.value).startswith(problem)
