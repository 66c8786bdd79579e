"""The four stages in one process."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from harness.waiting import wait_until
from smalti.errors import EngineFailedError, InvalidInputError, ModelError, SmaltiWarning
from smalti.models import vqgan
from smalti.pictures import load_drawing, png_bytes
from smalti.pipeline import Pipeline
from smalti.registry.folder import ModelFolder
from smalti.testing.model import random_parameters


def test_best_come_first_and_are_the_best_of_all(pipeline: Pipeline) -> None:
    best = pipeline.generate("a red balloon", n=4, candidates=7, seed=5)
    everything = pipeline.generate("a red balloon", n=7, candidates=7, seed=5)
    scores = [picture.score for picture in everything]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 7
    assert [picture.candidate for picture in best] == [picture.candidate for picture in everything[:4]]
    assert sorted(picture.candidate for picture in everything) == list(range(7))


def test_equal_seeds_give_equal_pictures(pipeline: Pipeline) -> None:
    first, again, other = (pipeline.generate("a fox", n=3, candidates=3, seed=seed) for seed in (1, 1, 2))
    for picture, same in zip(first, again, strict=True):
        assert picture.image.tobytes() == same.image.tobytes()
        np.testing.assert_array_equal(picture.tokens, same.tokens)
    assert {picture.image.tobytes() for picture in first}.isdisjoint(
        picture.image.tobytes() for picture in other
    )


def test_random_seed_reproduces_the_pictures(pipeline: Pipeline) -> None:
    picture = pipeline.generate("a fox", n=1, candidates=2)[0]
    again = pipeline.generate("a fox", n=1, candidates=2, seed=picture.seed)[0]
    assert picture.image.tobytes() == again.image.tobytes()


def test_picture_is_the_decoded_tokens(pipeline: Pipeline) -> None:
    picture = pipeline.generate("a fox", n=1, candidates=1, seed=3)[0]
    pixels = np.asarray(pipeline.decoder.vqgan.decode(picture.tokens[None]))[0]
    np.testing.assert_array_equal(np.asarray(picture.image), (pixels.clip(0, 1) * 255).astype(np.uint8))
    assert picture.tokens.shape == (16,)
    assert picture.tokens.max() < 64


def test_saved_file_is_the_picture_with_its_record(pipeline: Pipeline, tmp_path: Path) -> None:
    picture = pipeline.generate("a fox", n=1, candidates=2, seed=3)[0]
    picture.save(tmp_path / "fox.png")
    assert (tmp_path / "fox.png").read_bytes() == png_bytes(picture.image, picture.drawing)
    assert load_drawing(tmp_path / "fox.png") == picture.drawing
    assert [path.name for path in tmp_path.iterdir()] == ["fox.png"]


def test_more_candidates_than_slots(pipeline: Pipeline) -> None:
    many = pipeline.generate("a fox", n=20, candidates=20, seed=3)
    few = pipeline.generate("a fox", n=2, candidates=2, seed=3)
    by_candidate = {picture.candidate: picture for picture in many}
    assert sorted(by_candidate) == list(range(20))
    for picture in few:
        np.testing.assert_array_equal(picture.tokens, by_candidate[picture.candidate].tokens)


def test_prompt_matters_only_with_guidance(pipeline: Pipeline) -> None:
    """The prompt has no effect with scale 0, and has one with 10."""
    without = [
        pipeline.generate(p, n=1, candidates=1, seed=3, guidance_scale=0)[0].tokens for p in ("fox", "car")
    ]
    with_guidance = [
        pipeline.generate(p, n=1, candidates=1, seed=3, guidance_scale=10)[0].tokens for p in ("fox", "car")
    ]
    np.testing.assert_array_equal(without[0], without[1])
    assert (with_guidance[0] != with_guidance[1]).any()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"prompt": "  "}, "prompt"), ({"n": 0}, "n"), ({"n": 5, "candidates": 4}, "n"),
        ({"candidates": 0}, "candidates"), ({"candidates": 100_000}, "candidates"),
        ({"seed": -1}, "seed"), ({"seed": 2**63}, "seed"),
        ({"guidance_scale": -1.0}, "guidance_scale"), ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"temperature": -0.1}, "temperature"), ({"temperature": float("inf")}, "temperature"),
        ({"top_k": -1}, "top_k"), ({"top_p": 0.0}, "top_p"), ({"top_p": 1.1}, "top_p"),
    ],
)  # fmt: skip
def test_values_out_of_range_name_the_argument(
    pipeline: Pipeline, arguments: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidInputError, match=f"^{field}: ") as raised:
        pipeline.generate(**{"prompt": "a fox", **arguments})  # type: ignore[arg-type]
    assert raised.value.field == field
    assert "\n" not in str(raised.value)


def test_long_prompt_is_cut_off_with_a_warning(pipeline: Pipeline) -> None:
    words = "one two three four five six seven eight nine ten " * 10
    with pytest.warns(SmaltiWarning, match="64 tokens"):
        long = pipeline.generate(words, n=1, candidates=1, seed=3)[0]
    with pytest.warns(SmaltiWarning, match="64 tokens"):
        longer = pipeline.generate(words + "eleven", n=1, candidates=1, seed=3)[0]
    np.testing.assert_array_equal(long.tokens, longer.tokens)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_embed": 32}, "generates 64 different tokens, but the VQGAN's codebook has 32"),
        ({"resolution": 64}, "16 tokens"),
    ],
)
def test_parts_of_different_models_are_refused(
    tiny: ModelFolder, tmp_path: Path, changes: dict[str, int], message: str
) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(tiny.path, folder)
    fields = json.loads((folder / "vqgan" / "config.json").read_text())
    config = vqgan.VQGANConfig.from_fields({**fields, **changes})
    vqgan.VQGAN(config, random_parameters(vqgan.parameter_shapes(config), 0)).save(folder / "vqgan")
    with pytest.raises(ModelError, match=message):
        Pipeline.load(folder)


def test_closed_pipeline_has_ended_its_threads(tiny: ModelFolder) -> None:
    before = set(threading.enumerate())
    with Pipeline.load(tiny.path, slots=2) as opened:
        opened.generate("a fox", n=1, candidates=1, seed=3)
        mine = set(threading.enumerate()) - before
        assert {"generator", "generator-watch"} <= {thread.name for thread in mine}
    wait_until(lambda: not any(thread.is_alive() and thread.name.startswith("generator") for thread in mine))
    with pytest.raises(EngineFailedError, match="the engine was closed"):
        opened.generate("a fox", n=1, candidates=1)
