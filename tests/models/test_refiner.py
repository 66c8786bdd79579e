"""The refiner's network: its files, its checks, and its place in a model folder."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from smalti.errors import CheckpointError, ConfigError, ModelError
from smalti.models import refiner
from smalti.models.refiner import Refiner, RefinerConfig
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.registry.verify import find_problems
from smalti.testing.model import TINY_REFINER, random_parameters

FIELDS = {"code_dim": 8, "text_dim": 32}


def test_default_sizes_make_a_small_network() -> None:
    shapes = refiner.parameter_shapes(RefinerConfig.from_fields({"code_dim": 16, "text_dim": 192}))
    assert sum(np.prod(shape) for shape in shapes.values()) == 5_344_736
    assert shapes["conv_in/kernel"] == (3, 3, 2 * 3 * 4**2, 48)
    assert shapes["mid/cross_1/k/kernel"] == (160, 160)


def test_saved_refiner_is_loaded_again(tmp_path: Path) -> None:
    params = random_parameters(refiner.parameter_shapes(TINY_REFINER), seed=1)
    Refiner(TINY_REFINER, params).save(tmp_path)
    loaded = Refiner.load(tmp_path)
    assert loaded.config == TINY_REFINER
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


def test_untrained_refiner_keeps_the_enlarged_picture() -> None:
    generator = np.random.default_rng(0)
    start = generator.random((2, 16, 16, 3), np.float32)
    noisy = generator.random((2, 16, 16, 3), np.float32)
    network = Refiner(TINY_REFINER, refiner.initialize(TINY_REFINER, jax.random.key(1)))
    mask = np.ones((2, 3), np.int32)
    codes, text = generator.random((2, 2, 2, 8), np.float32), generator.random((2, 3, 32), np.float32)
    predicted = network.predict(noisy, start, np.array([0.1, 0.9], np.float32), codes, text, mask)
    np.testing.assert_array_equal(predicted, start)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"channels": [16, 40]}, "channels"),
        ({"channels": []}, "channels"),
        ({"channels": [16, 48], "attention_heads": 5}, "attention_heads"),
        ({"upscale": 3}, "upscale: 3 must be 1, 2 or 4"),
        ({"noise": -1}, "noise"),
        ({"code_dim": None}, "code_dim: missing"),
    ],
)
def test_wrong_configuration_is_refused(fields: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        RefinerConfig.from_fields({**FIELDS, **fields})


def test_refiner_is_a_part_of_the_model_with_its_own_revision(
    tiny: ModelFolder, refining: ModelFolder
) -> None:
    assert refining.revision == tiny.revision  # Tokens and plain pictures are the same with and without it.
    assert tiny.refiner_folder is tiny.refiner_revision is None
    assert refining.refiner_revision not in (None, refining.revision)
    assert find_problems(refining) == []
    spec = ModelSpec.load(refining)
    assert (spec.refiner, spec.trained_upscale) == (TINY_REFINER, 2)
    assert ModelSpec.load(tiny).trained_upscale is None


def copy_of(folder: ModelFolder, path: Path) -> Path:
    shutil.copytree(folder.path, path)
    return path


def test_damaged_refiner_is_found(refining: ModelFolder, tmp_path: Path) -> None:
    path = copy_of(refining, tmp_path / "damaged")
    weights = path / "refiner" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    problems = find_problems(ModelFolder.open(path))
    assert any("refiner/model.safetensors: changed" in problem for problem in problems)
    with pytest.raises(CheckpointError):
        Refiner.load(path / "refiner")


def test_changed_refiner_revision_is_found(refining: ModelFolder, tmp_path: Path) -> None:
    path = copy_of(refining, tmp_path / "other")
    fields = json.loads((path / "model.json").read_text())
    fields["parts"]["refiner"]["revision"] = f"sha256:{'0' * 64}"
    (path / "model.json").write_text(json.dumps(fields))
    (problem,) = find_problems(ModelFolder.open(path))
    assert "parts.refiner.revision: does not match the listed files" in problem


def test_refiner_of_another_model_is_refused(refining: ModelFolder, tmp_path: Path) -> None:
    path = copy_of(refining, tmp_path / "foreign")
    config = path / "refiner" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "text_dim": 48}))
    with pytest.raises(
        ModelError, match="the refiner reads encodings of width 48, but the model's have width 32"
    ):
        ModelSpec.load(ModelFolder.open(path))
