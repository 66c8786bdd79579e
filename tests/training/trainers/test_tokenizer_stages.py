"""A tokenizer that starts from another: codes that stay, decoders that change, and the adversarial stage."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from smalti.errors import ConfigError, InvalidInputError
from smalti.models import vqgan
from smalti.models.layers import apply, flatten
from smalti.models.vqgan import VQGAN, VQGANModule
from smalti.training.batches.sources import ComposedPictures
from smalti.training.data.world.composition import World
from smalti.training.loop.step import TrainState
from smalti.training.losses.adversarial import Adversary
from smalti.training.losses.crops import crop
from smalti.training.losses.reconstruction import reconstruction_loss
from smalti.training.trainers.inputs import Inputs
from smalti.training.trainers.tokenizer import TokenizerTrainee, prepare
from smalti.training.trainers.tokenizer_objective import Phase, TokenizerObjective
from smalti.training.trainers.tokenizer_settings import TokenizerSettings

MODEL = {
    "ch": 32, "ch_mult": (1,), "num_res_blocks": 1, "resolution": 64, "z_channels": 4, "embed_dim": 4, "n_embed": 32,
    "patch_size": 16,
}  # fmt: skip
ADVERSARIAL = {"crop": 32, "layers": 2, "ch": 8, "learning_rate": 1e-3}


def settings(**changes: Any) -> TokenizerSettings:
    optimizer = {"learning_rate": 1e-2, "warmup_steps": 1, "weight_decay": 0.1}
    told = {"steps": 40, "batch_size": 4, "held_out": 6, "model": MODEL, "optimizer": optimizer}
    return TokenizerSettings.check(**{**told, **changes})


@pytest.fixture(scope="module")
def pictures(world: World) -> ComposedPictures:
    return ComposedPictures(world, seed=0)


@pytest.fixture(scope="module")
def start() -> VQGAN:
    """A tokenizer of another trainer: its codes have any length."""
    config = settings().config()
    params = vqgan.initialize(config, jax.random.key(3))
    codebook = jax.random.normal(jax.random.key(4), (32, 4)) * jnp.linspace(0.5, 2, 32)[:, None]
    return VQGAN(config, {**params, "quantize": {"embedding": {"embedding": codebook}}})


def tokens(model: VQGAN, pictures: ComposedPictures) -> np.ndarray:
    return np.asarray(model.encode(pictures.batch(0, 8).astype(np.float32) / 255))


def test_frozen_codes_are_the_same_to_the_bit_while_the_decoder_learns(
    pictures: ComposedPictures, start: VQGAN
) -> None:
    told = settings(freeze="codes", adversarial=ADVERSARIAL, average=0.5)
    trainee = TokenizerTrainee(told, pictures, start)
    before = trainee.evaluate()
    for number in range(6):
        trainee.step(number)
    after, expected = flatten(trainee.weights), flatten(start.params)
    for name in expected:
        same = np.array_equal(after[name], expected[name])
        assert same == name.startswith(("encoder/", "quant_conv/", "quantize/")), name
    trained = VQGAN(told.config(), trainee.weights)
    np.testing.assert_array_equal(tokens(trained, pictures), tokens(start, pictures))
    assert len(np.unique(tokens(start, pictures))) > 1
    assert trainee.evaluate()["loss"] < before["loss"]
    assert trainee.keeps_newest


def test_the_gradient_is_that_of_all_losses_together(
    pictures: ComposedPictures, thin_vgg: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(thin_vgg, tmp_path / "vgg.pth")
    told = settings(
        adversarial={**ADVERSARIAL, "start": 5, "weight": 0.3},
        perceptual={"weights": str(tmp_path / "vgg.pth"), "weight": 0.2, "start": 2, "crop": 16},
    )
    objective = TokenizerObjective(told)
    assert [objective.phase(step) for step in (1, 2, 5)] == [
        Phase(perceptual=False, adversarial=False),
        Phase(perceptual=True, adversarial=False),
        Phase(perceptual=True, adversarial=True),
    ]
    params, memory = objective.initialize()
    batch = {
        "pixels": jnp.asarray(pictures.batch(0, 2)),
        "corners": jnp.array([[0.1, 0.9], [0.5, 0.0]]),
    }
    state = TrainState(jnp.int32(5), params, None, memory)
    gradient, (metrics, extra) = objective.gradient(state, batch, objective.phase(5))
    real = batch["pixels"].astype(jnp.float32) / 255
    assert told.adversarial is not None
    adversary = Adversary(told.adversarial, jnp.float32)
    assert objective._perceptual is not None
    perceptual = objective._perceptual

    def drawn_by(weights: Any) -> tuple[jax.Array, jax.Array]:
        coded = objective._encode(weights, real)
        return apply(objective._module, weights, coded.nearest, method=VQGANModule.pixels), coded.loss

    def reconstruction(weights: Any) -> jax.Array:
        drawn, codebook = drawn_by(weights)
        looks = perceptual.distance(crop(drawn, batch["corners"], 16), crop(real, batch["corners"], 16))
        return reconstruction_loss(told.loss, drawn, real)[0] + 0.2 * looks + 0.5 * codebook

    def adversarial(weights: Any) -> jax.Array:
        return adversary.decoder_loss(
            memory["discriminator"], crop(drawn_by(weights)[0], batch["corners"], 32)
        )

    ours, theirs = jax.grad(reconstruction)(params), jax.grad(adversarial)(params)
    norms = [np.linalg.norm(each["decoder"]["conv_out"]["kernel"]) for each in (ours, theirs)]
    weight = 0.3 * norms[0] / (norms[1] + 1e-4)
    assert float(metrics["adversarial_weight"]) == pytest.approx(weight, rel=1e-3)
    expected = flatten(jax.tree.map(lambda a, b: a + weight * b, ours, theirs))
    # The bias of the keys of an attention has no gradient, only noise.
    largest = max(float(np.abs(leaf).max()) for leaf in expected.values())
    for name, found in flatten(gradient).items():
        np.testing.assert_allclose(found, expected[name], rtol=2e-2, atol=1e-5 * largest, err_msg=name)
    assert extra["drawn"].shape == (2, 32, 32, 3)


def test_the_discriminator_learns_from_its_start_on_and_a_resumed_run_continues_exactly(
    pictures: ComposedPictures,
) -> None:
    told = settings(adversarial={**ADVERSARIAL, "start": 2, "r1": 0.1})
    whole = TokenizerTrainee(told, pictures)
    steps = [whole.step(number) for number in range(2)]
    untouched = jax.device_get(whole.state.memory["discriminator"].params)
    steps += [whole.step(number) for number in range(2, 4)]
    halfway = TrainState(*jax.device_get(whole.state))
    steps += [whole.step(number) for number in range(4, 8)]
    assert ["discriminator" in each for each in steps] == 2 * [False] + 6 * [True]
    fresh = jax.device_get(TokenizerTrainee(told, pictures).state.memory["discriminator"].params)
    for before, first in zip(jax.tree.leaves(untouched), jax.tree.leaves(fresh), strict=True):
        np.testing.assert_array_equal(before, first)

    resumed = TokenizerTrainee(told, pictures)
    resumed.state = halfway
    again = [resumed.step(number) for number in range(4, 8)]
    for name in ("loss", "discriminator", "adversarial_weight"):
        assert [float(each[name]) for each in again] == [float(each[name]) for each in steps[4:]]


def test_the_average_of_the_decoder_is_evaluated_and_exported(pictures: ComposedPictures) -> None:
    trainee = TokenizerTrainee(settings(average=0.75), pictures)
    kernels = []
    for number in range(3):
        kernels.append(np.asarray(trainee.state.params["decoder"]["conv_out"]["kernel"]))
        trainee.step(number)
    kernels.append(np.asarray(trainee.state.params["decoder"]["conv_out"]["kernel"]))
    expected = kernels[0]
    for kernel in kernels[1:]:
        expected = 0.75 * expected + 0.25 * kernel
    np.testing.assert_allclose(trainee.weights["decoder"]["conv_out"]["kernel"], expected, atol=1e-6)
    for name in ("encoder", "quantize"):
        assert trainee.weights[name] is trainee.state.params[name]


def test_a_decoder_of_other_sizes_starts_untrained_on_the_same_codes(
    pictures: ComposedPictures, start: VQGAN
) -> None:
    decoder = {"ch": 64, "ch_mult": (1, 1), "num_res_blocks": 1, "patch_size": 8}
    told = settings(freeze="codes", model={**MODEL, "decoder": decoder})
    trainee = TokenizerTrainee(told, pictures, start)
    trainee.step(0)
    model = VQGAN(told.config(), trainee.weights)
    np.testing.assert_array_equal(tokens(model, pictures), tokens(start, pictures))
    assert model.decode(tokens(model, pictures)).shape == (8, 64, 64, 3)


def test_a_start_that_does_not_fit_is_refused(
    pictures: ComposedPictures, start: VQGAN, world_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match=r'^from: must be given, since freeze is "codes"'):
        prepare(settings(freeze="codes"), Inputs(data=world_data), tmp_path, lambda done, total: None)
    with pytest.raises(InvalidInputError, match=r"^from: .*: its n_embed is 32, not 64"):
        TokenizerTrainee(settings(model={**MODEL, "n_embed": 64}), pictures, start)
    with pytest.raises(InvalidInputError, match=r"^from: must have codes of equal length"):
        TokenizerTrainee(settings(), pictures, start)
    blind = replace(start, params={name: part for name, part in start.params.items() if name != "encoder"})
    with pytest.raises(InvalidInputError, match=r"^from: must have an encoder"):
        TokenizerTrainee(settings(freeze="codes"), pictures, blind)


def test_a_crop_larger_than_the_pictures_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^adversarial\.crop: must be at most the resolution, 64, not 96"):
        settings(adversarial={**ADVERSARIAL, "crop": 96}).config()
