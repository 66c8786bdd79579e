"""A step of the optimizer: accumulated, on many devices, with Muon."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness.paths import ROOT
from smalti.errors import InvalidInputError
from smalti.models.bart import DalleBartConfig
from smalti.models.layers import flatten
from smalti.training.batches.batch import Batch
from smalti.training.loop.optimizers import make_optimizer
from smalti.training.loop.settings import OptimizerSettings
from smalti.training.loop.step import Stepper
from smalti.training.trainers.generator import GeneratorObjective

CONFIG = DalleBartConfig(
    encoder_vocab_size=40, image_vocab_size=20, d_model=16, encoder_layers=1, decoder_layers=2,
    encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
    max_text_length=6, image_length=4, decoder_start_token_id=20, normalize_text=True, init_std=0.1,
)  # fmt: skip
STEPS = 4


def batch(step: int) -> Batch:
    generator = np.random.default_rng(step)
    labels = generator.integers(0, 20, (16, 4), dtype=np.int32)
    return {
        "input_ids": generator.integers(0, 40, (16, 6), dtype=np.int32),
        "attention_mask": (generator.random((16, 6)) < 0.7).astype(np.int32) | np.eye(16, 6, dtype=np.int32),
        "decoder_input_ids": np.concatenate([np.full((16, 1), 20, np.int32), labels[:, :-1]], 1),
        "labels": labels,
    }


def stepper(accumulate: int, optimizer: str, weight_decay: float = 0.1) -> Stepper:
    settings = OptimizerSettings.check(
        name=optimizer, learning_rate=1e-2, warmup_steps=1, weight_decay=weight_decay
    )
    return Stepper(GeneratorObjective(CONFIG), make_optimizer(settings, STEPS), accumulate)


def losses(accumulate: int, optimizer: str = "adamw") -> list[float]:
    trained = stepper(accumulate, optimizer)
    return [float(trained.step(batch(step))["loss"]) for step in range(STEPS)]


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_an_accumulated_gradient_equals_that_of_the_whole_batch(optimizer: str) -> None:
    whole = losses(1, optimizer)
    assert len(set(whole)) == STEPS
    np.testing.assert_allclose(losses(4, optimizer), whole, rtol=2e-5)


@pytest.mark.slow
def test_eight_devices_have_the_losses_of_one() -> None:
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(ROOT),
    }
    program = (
        "import importlib.util, json, jax; "
        f"spec = importlib.util.spec_from_file_location('steps', {str(Path(__file__))!r}); "
        "steps = importlib.util.module_from_spec(spec); spec.loader.exec_module(steps); "
        "print(json.dumps([jax.device_count(), steps.losses(2), steps.held_by_a_device()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    devices, theirs, shape = json.loads(done.stdout)
    assert devices == 8
    # Each device holds one of the eight pictures of both parts.
    assert shape == [2, 1, 4]
    np.testing.assert_allclose(theirs, losses(1), rtol=2e-5)


def held_by_a_device() -> tuple[int, ...]:
    parts = stepper(2, "adamw")._split(batch(0))
    return parts["labels"].addressable_shards[0].data.shape


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"batch_size: must be a multiple of .*, 3 x \d+, not 16"):
        stepper(3, "adamw").step(batch(0))


def test_muon_updates_the_matrices_of_the_layers_and_adam_the_rest() -> None:
    trained = stepper(1, "muon", weight_decay=0)
    before = flatten(jax.device_get(trained.state.params))
    trained.step(batch(0))
    moved = {
        name: leaf - before[name] for name, leaf in flatten(jax.device_get(trained.state.params)).items()
    }
    # A step of Muon is nearly orthogonal, layer by layer; the first one of Adam has nearly equal absolute values.
    products = moved["model/decoder/layers/FlaxBartDecoderLayers/FlaxBartAttention_0/v_proj/kernel"]
    for values in np.linalg.svd(products, compute_uv=False):
        assert values[0] < 2 * np.median(values)
    # With Nesterov's momentum of 0.9 that value is the rate times this (Dozat 2016, algorithm 8, at its first step).
    nesterov = 0.9 * 0.1 / (1 - 0.9**2) + 1
    assert np.median(np.abs(moved["lm_head/kernel"])) == pytest.approx(1e-2 * nesterov, rel=0.01)


def test_muon_updates_a_convolution_as_the_matrix_from_a_patch_to_the_channels() -> None:
    optimizer = make_optimizer(OptimizerSettings.check(name="muon", warmup_steps=1), STEPS)
    generator = np.random.default_rng(1)
    # Nearly of rank one: only an update that is made orthogonal has values that are alike.
    matrix = np.outer(generator.normal(size=72), np.ones(6)) + 0.2 * generator.normal(size=(72, 6))
    kernel = matrix.reshape(3, 3, 8, 6).astype(np.float32)
    params = {"conv": {"kernel": jnp.zeros_like(kernel)}}
    updates, _ = optimizer.update({"conv": {"kernel": kernel}}, optimizer.init(params), params)
    values = np.linalg.svd(np.asarray(updates["conv"]["kernel"]).reshape(matrix.shape), compute_uv=False)
    assert values[0] < 2 * values[-1]
