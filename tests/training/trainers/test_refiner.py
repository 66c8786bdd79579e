"""Training the refiner: its batches, that a few steps learn, and that a resumed run continues exactly."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness.paths import SAMPLES
from smalti.cli import run
from smalti.engines.refiner import enlarge
from smalti.errors import InvalidInputError
from smalti.models.layers import average_squares
from smalti.models.refiner import Refiner
from smalti.models.vqgan import VQGAN
from smalti.registry.folder import ModelFolder
from smalti.registry.verify import find_problems
from smalti.training.batches.second_pass import nearest_codes
from smalti.training.loop.settings import load_settings
from smalti.training.refiner_export import add_refiner
from smalti.training.trainers.inputs import Inputs
from smalti.training.trainers.refiner import RefinerSettings, RefinerTrainee
from smalti.training.trainers.refiner_inputs import NETWORK_FILE, prepare

FILE = SAMPLES / "runs" / "refiner.toml"
SETTINGS = load_settings(FILE, RefinerSettings)


def trainee(tiny: ModelFolder, world_data: Path, folder: Path, **changes: object) -> RefinerTrainee:
    settings = SETTINGS.model_copy(update=changes)
    return prepare(settings, Inputs(data=world_data, model=tiny.path), folder, lambda done, total: None)


def test_batch_starts_from_what_the_tokens_hold(tiny: ModelFolder, world_data: Path, tmp_path: Path) -> None:
    batch = trainee(tiny, world_data, tmp_path, replaced_codes=0.0)._batch(0)
    assert batch["original"].shape == batch["start"].shape == (4, 64, 64, 3)
    vqgan = VQGAN.load(tiny.vqgan_folder)
    small = average_squares(jnp.asarray(batch["original"], jnp.float32) / 255, 2)
    decoded = (np.asarray(vqgan.decode(vqgan.encode(small))).clip(0, 1) * 255).astype(np.uint8)
    np.testing.assert_array_equal(batch["start"], np.stack([enlarge(each, 2) for each in decoded]))
    assert batch["codes"].shape == (4, 4, 4, 8)
    assert batch["mask"].sum(1).min() > 2
    assert ((batch["t"] > 0) & (batch["t"] < 1)).all()


def test_some_codes_are_replaced_by_near_ones(tiny: ModelFolder, world_data: Path, tmp_path: Path) -> None:
    made = trainee(tiny, world_data, tmp_path, replaced_codes=1.0)
    intact = trainee(tiny, world_data, tmp_path, replaced_codes=0.0)
    changed = [
        (made._batch(number)["codes"] != intact._batch(number)["codes"]).any(-1).mean() for number in range(3)
    ]
    assert 0.2 < np.mean(changed) < 0.8
    codebook = np.array([[0.0], [1.0], [10.0], [11.5]], np.float32)
    assert nearest_codes(codebook).tolist() == [[1, 2, 3], [0, 2, 3], [3, 1, 0], [2, 1, 0]]


def test_a_few_steps_learn(tiny: ModelFolder, world_data: Path, tmp_path: Path) -> None:
    made = trainee(tiny, world_data, tmp_path, steps=30)
    before = made.evaluate()
    assert before["psnr"] == pytest.approx(
        before["psnr_enlarged"], abs=1e-3
    )  # Untrained, it changes nothing.
    for number in range(30):
        made.step(number)
    after = made.evaluate()
    assert after["loss"] < 0.7 * before["loss"]
    assert after["psnr"] > before["psnr"] + 1
    assert made.sheet().size == (4 * 66 + 2, 3 * 66 + 2)


@pytest.mark.slow
def test_resumed_run_continues_exactly(tiny: ModelFolder, world_data: Path, tmp_path: Path) -> None:
    whole, half = trainee(tiny, world_data, tmp_path), trainee(tiny, world_data, tmp_path)
    for number in range(3):
        whole.step(number)
    half.step(0)
    state = jax.device_get(half.state)
    again = trainee(tiny, world_data, tmp_path)
    again.state = state
    for number in (1, 2):
        again.step(number)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again.state), jax.device_get(whole.state))
    # The exported weights are the moving average, not the last ones.
    last, average = jax.device_get(whole.state.params), jax.device_get(whole.weights)
    assert (last["conv_out"]["bias"] != average["conv_out"]["bias"]).any()


def test_run_is_for_one_model(
    tiny: ModelFolder, worded: ModelFolder, world_data: Path, tmp_path: Path
) -> None:
    trainee(tiny, world_data, tmp_path)
    network = tmp_path / NETWORK_FILE
    network.write_text(network.read_text().replace('"codebook": "', '"codebook": "0'))
    with pytest.raises(InvalidInputError, match="model: is not the one that"):
        trainee(tiny, world_data, tmp_path)


def test_trained_refiner_is_added_to_a_model(tiny: ModelFolder, world_data: Path, tmp_path: Path) -> None:
    trained, out = tmp_path / "run", tmp_path / "tiny"
    paths = ["--config", FILE, "--data", world_data, "--out", trained, "--model", tiny.path]
    assert run(["train", "refiner", *map(str, paths)]) == 0
    paths = ["--model", tiny.path, "--refiner", trained, "--out", out]
    assert run(["export", *map(str, paths), "--half"]) == 0
    model = ModelFolder.open(out)
    assert find_problems(model) == []
    assert model.revision == tiny.revision
    assert model.refiner_folder is not None
    assert Refiner.load(model.refiner_folder).config.upscale == 2
    with pytest.raises(InvalidInputError, match="is not empty"):
        add_refiner(tiny, trained, out)
