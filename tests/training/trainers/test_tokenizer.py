"""Training the image tokenizer: its codebook, and that a resumed run continues exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness.paths import SAMPLES
from smalti.errors import ConfigError
from smalti.models.vqgan import VQGAN
from smalti.training.batches.sources import ComposedPictures
from smalti.training.data.world.composition import World
from smalti.training.data.world.description import load_description
from smalti.training.data.world.sprites import make_sprites
from smalti.training.loop.step import TrainState
from smalti.training.similarity import psnr, sharpness, ssim
from smalti.training.trainers.quantizer import on_sphere, quantize, restart_dead
from smalti.training.trainers.tokenizer import TokenizerTrainee
from smalti.training.trainers.tokenizer_objective import TokenizerObjective
from smalti.training.trainers.tokenizer_settings import TokenizerSettings

SETTINGS = TokenizerSettings.check(
    steps=40,
    batch_size=4,
    held_out=6,
    model={
        "ch": 32, "ch_mult": (1,), "num_res_blocks": 1, "resolution": 64, "z_channels": 4, "embed_dim": 4,
        "n_embed": 32, "patch_size": 16,
    },
    restart={"every": 3, "until": 0.5},
)  # fmt: skip


@pytest.fixture(scope="module")
def pictures() -> ComposedPictures:
    description = load_description(SAMPLES / "world.json")
    return ComposedPictures(World(description, make_sprites(SAMPLES / "packages", description, 64)), seed=0)


def test_the_exported_model_finds_the_nearest_code_by_direction(pictures: ComposedPictures) -> None:
    objective = TokenizerObjective(SETTINGS)
    params, _ = objective.initialize()
    pixels = pictures.batch(0, 4)
    _, (_, extra) = objective.loss(params, {"pixels": jnp.asarray(pixels)})
    exported = VQGAN(objective.config, params).encode(pixels.astype(np.float32) / 255)
    np.testing.assert_array_equal(np.asarray(extra["codes"]).reshape(4, -1), exported)
    assert len(np.unique(exported)) > 1


def test_the_gradient_goes_straight_through_the_codes() -> None:
    key = jax.random.key(0)
    vectors = on_sphere(jax.random.normal(key, (1, 2, 2, 4)))
    codebook = on_sphere(jax.random.normal(jax.random.fold_in(key, 1), (8, 4)))
    weights = jnp.arange(16.0).reshape(vectors.shape)
    gradient = jax.grad(lambda x: (quantize(x, codebook, 0.0)[0] * weights).sum())(vectors)
    np.testing.assert_array_equal(gradient, weights)
    nearest, codes, _ = quantize(vectors, codebook, 0.0)
    np.testing.assert_allclose(nearest, codebook[codes], atol=1e-6)
    distances = jnp.square(vectors[..., None, :] - codebook).sum(-1)
    np.testing.assert_array_equal(codes, distances.argmin(-1))


def test_the_codebook_loss_moves_codes_and_vectors_together() -> None:
    vectors, codebook = jnp.full((1, 1, 1, 2), 1.0), jnp.array([[1.0, -1.0]])
    loss = quantize(vectors, codebook, 0.25)[2]
    assert float(loss) == pytest.approx(1.25 * 2)
    to_codes = jax.grad(lambda x: quantize(x, codebook, 0.25)[2])(vectors)
    to_vectors = jax.grad(lambda x: quantize(vectors, x, 0.25)[2])(codebook)
    np.testing.assert_allclose(to_codes.ravel(), [0, 0.25 * 2])
    np.testing.assert_allclose(to_vectors.ravel(), [0, -2])


def test_unused_codes_move_to_vectors_and_others_stay() -> None:
    codebook = on_sphere(jax.random.normal(jax.random.key(0), (16, 4)))
    vectors = on_sphere(jnp.abs(jax.random.normal(jax.random.key(1), (50, 4))))
    used = jnp.arange(16) % 2
    restarted = restart_dead(codebook, used, vectors, jax.random.key(2))
    np.testing.assert_array_equal(restarted[1::2], codebook[1::2])
    nearest = jnp.square(restarted[::2, None] - vectors).sum(-1).min(-1)
    assert float(nearest.max()) < 0.05
    assert len(np.unique(np.asarray(restarted), axis=0)) == 16
    np.testing.assert_allclose(jnp.square(restarted).mean(-1), 1, rtol=1e-5)


def test_codes_are_restarted_when_it_is_time() -> None:
    objective = TokenizerObjective(SETTINGS)
    params, memory = objective.initialize()
    extra = {"vectors": jnp.ones((4, 4, 4, 4)), "codes": jnp.zeros((4, 4, 4), jnp.int32)}

    def dead_after(step: int) -> tuple[int, int]:
        new, remembered, _ = objective.after_update(jnp.int32(step), params, memory, extra)
        codebooks = [np.asarray(tree["quantize"]["embedding"]["embedding"]) for tree in (params, new)]
        return int((np.abs(codebooks[0] - codebooks[1]) > 1e-4).any(-1).sum()), int(remembered["used"].sum())

    # All codes but one are unused. Restarts happen at every third step, until step 20 of 40.
    assert dead_after(3) == (31, 0)
    assert dead_after(18) == (31, 0)
    assert dead_after(4) == (0, 64)
    assert dead_after(21) == (0, 64)


def test_a_few_steps_learn_and_a_resumed_run_continues_exactly(pictures: ComposedPictures) -> None:
    whole = TokenizerTrainee(SETTINGS, pictures)
    before = whole.evaluate()
    losses = [float(whole.step(number)["loss"]) for number in range(4)]
    halfway = TrainState(*jax.device_get(whole.state))
    losses += [float(whole.step(number)["loss"]) for number in range(4, 12)]
    after = whole.evaluate()
    assert after["loss"] < before["loss"]
    assert after["psnr"] > before["psnr"]
    assert 0 < after["codes_used"] <= 1
    assert 1 <= after["perplexity"] <= 32 * after["codes_used"] + 1e-6
    assert after["sharpness"] > 0

    resumed = TokenizerTrainee(SETTINGS, pictures)
    resumed.state = halfway
    assert [float(resumed.step(number)["loss"]) for number in range(4, 12)] == losses[4:]


def test_a_decoder_of_its_own_learns_with_all_terms_of_the_loss(pictures: ComposedPictures) -> None:
    decoder = {"ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1, "attn_resolutions": (4,), "patch_size": 8}
    model = {**SETTINGS.model.model_dump(), "patch_size": 8, "reduction": 2, "decoder": decoder}
    loss, optimizer = {"coarse": 1, "colour": 1}, {"learning_rate": 1e-2, "warmup_steps": 1}
    settings = TokenizerSettings.check(
        **{**SETTINGS.model_dump(), "model": model, "loss": loss, "optimizer": optimizer}
    )
    trainee = TokenizerTrainee(settings, pictures)
    before = trainee.evaluate()
    steps = [trainee.step(number) for number in range(8)]
    assert {"coarse", "colour"} < steps[0].keys()
    assert trainee.evaluate()["loss"] < before["loss"]
    assert np.asarray(trainee.sheet()).shape == (2 * 66 + 2, 6 * 66 + 2, 3)


def test_coarse_errors_need_whole_squares() -> None:
    model = {**SETTINGS.model.model_dump(), "resolution": 20, "patch_size": 4}
    settings = TokenizerSettings.check(**{**SETTINGS.model_dump(), "model": model, "loss": {"coarse": 1}})
    with pytest.raises(
        ConfigError, match=r"^loss\.coarse: needs a resolution that is a multiple of 8, not 20"
    ):
        settings.config()


def test_the_sheet_shows_pictures_above_their_reconstructions(pictures: ComposedPictures) -> None:
    sheet = np.asarray(TokenizerTrainee(SETTINGS, pictures).sheet())
    assert sheet.shape == (2 * 66 + 2, 6 * 66 + 2, 3)
    np.testing.assert_array_equal(sheet[2:66, 2:66], pictures.held_out(1)[0])


def test_quality_of_equal_and_of_noisy_pictures() -> None:
    pictures = np.random.default_rng(0).random((2, 32, 32, 3))
    noisy = pictures + np.random.default_rng(1).normal(0, 0.1, pictures.shape)
    np.testing.assert_allclose(psnr(pictures, pictures), 100)
    board = np.indices((32, 32)).sum(0) // 4 % 2 * np.ones((1, 1, 1))
    half = (board[..., None] * np.array([100, 100, 100])).astype(np.uint8)
    assert sharpness(2 * half)[0] == pytest.approx(2 * sharpness(half)[0])
    np.testing.assert_allclose(psnr(noisy, pictures), 20, atol=0.2)
    np.testing.assert_allclose(ssim(pictures, pictures), 1)
    assert (ssim(noisy, pictures) < 0.98).all()
    # Only the means of flat pictures count: (2ab + c) / (a² + b² + c).
    flat = np.full((1, 8, 8, 3), 0.5), np.full((1, 8, 8, 3), 0.25)
    np.testing.assert_allclose(ssim(*flat), (0.25 + 1e-4) / (0.3125 + 1e-4))


def test_an_untrained_decoder_draws_gray(pictures: ComposedPictures) -> None:
    objective = TokenizerObjective(SETTINGS)
    drawn = np.asarray(
        VQGAN(objective.config, objective.initialize()[0]).decode(np.arange(32).reshape(2, 16))
    )
    assert np.abs(drawn - 0.5).mean() < 0.1
    assert drawn.std() > 0
