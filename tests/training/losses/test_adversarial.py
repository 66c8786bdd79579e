"""The adversarial loss: what a discriminator learns, its regularizations, and the adaptive weight."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smalti.errors import InvalidInputError
from smalti.training.losses.adversarial import (
    AdversarialSettings,
    Adversary,
    DiscriminatorState,
    PatchDiscriminator,
    adaptive_weight,
)
from smalti.training.losses.crops import crop

SMALL = {"crop": 16, "layers": 2, "ch": 8, "learning_rate": 2e-3, "lecam": 0.0}


def pictures(seed: int, brightness: float) -> jax.Array:
    noise = jax.random.uniform(jax.random.key(seed), (4, 16, 16, 3))
    return brightness * noise * jnp.linspace(0, 1, 16)[:, None, None]


def trained(steps: int = 30, **changes: Any) -> tuple[Adversary, DiscriminatorState, list[dict[str, float]]]:
    adversary = Adversary(AdversarialSettings.check(**{**SMALL, **changes}), jnp.float32)
    state, curve = adversary.initialize(jax.random.key(0)), []
    learn = jax.jit(adversary.learn)
    for step in range(steps):
        state, metrics = learn(state, pictures(step, 1.0), jnp.flip(pictures(step, 1.0), 1))
        curve.append({name: float(value) for name, value in metrics.items()})
    return adversary, state, curve


def test_it_learns_to_tell_pictures_from_reconstructions() -> None:
    adversary, state, curve = trained()
    assert curve[0]["discriminator"] == pytest.approx(1, abs=0.2)
    assert curve[-1]["discriminator"] < 0.7
    assert curve[-1]["says_of_real"] > 0.2 > -0.2 > curve[-1]["says_of_drawn"]
    # What it takes for real is the cheaper for the decoder.
    fooled = adversary.decoder_loss(state, pictures(99, 1.0))
    assert float(fooled) < 0 < float(adversary.decoder_loss(state, jnp.flip(pictures(99, 1.0), 1)))


def test_regularizations_keep_its_answers_small() -> None:
    free = trained()[2][-1]
    gap = free["says_of_real"] - free["says_of_drawn"]
    changes: list[dict[str, Any]] = [{"lecam": 5.0}, {"r1": 10.0}]
    for change in changes:
        held = trained(**change)[2][-1]
        assert held["says_of_real"] - held["says_of_drawn"] < 0.8 * gap, change


def test_the_moving_averages_follow_what_it_says() -> None:
    _, state, curve = trained(steps=2)
    said = [each["says_of_real"] for each in curve]
    np.testing.assert_allclose(state.real, 0.99 * 0.01 * said[0] + 0.01 * said[1], rtol=1e-4)


def test_it_judges_patches_of_the_published_layout() -> None:
    network = PatchDiscriminator(ch=64, layers=3, dtype=jnp.float32)
    picture = jnp.zeros((1, 64, 64, 3))
    params = jax.eval_shape(network.init, jax.random.key(0), picture)["params"]
    features = [params[f"conv_{layer}"]["kernel"].shape[-1] for layer in range(4)]
    assert features == [64, 128, 256, 512]
    assert jax.eval_shape(network.init_with_output, jax.random.key(0), picture)[0].shape == (1, 6, 6)


def test_a_crop_too_small_for_the_layers_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="crop: must be at least 24 with 3 layers, not 16"):
        AdversarialSettings.check(crop=16)
    AdversarialSettings.check(crop=24)


def test_the_adaptive_weight_makes_both_gradients_of_the_last_layer_equal() -> None:
    reconstruction, adversarial = jnp.full((3, 3), 2.0), jnp.full((3, 3), 0.5)
    weight = adaptive_weight(reconstruction, adversarial, 1.0)
    assert float(optax.tree.norm(weight * adversarial)) == pytest.approx(
        float(optax.tree.norm(reconstruction)), rel=1e-3
    )
    assert float(adaptive_weight(reconstruction, adversarial, 0.25)) == pytest.approx(float(weight) / 4)
    assert float(adaptive_weight(reconstruction, jnp.zeros((3, 3)), 0.5)) == 0.5e4


def test_crops_are_where_the_corners_say() -> None:
    rows = jnp.arange(10.0)[:, None, None] + jnp.zeros((2, 10, 10, 3))
    corners = jnp.array([[0.0, 0.0], [0.999999, 0.5]])
    cut = crop(rows, corners, 4)
    assert cut.shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(cut[:, :, 0, 0], [[0, 1, 2, 3], [6, 7, 8, 9]])
    np.testing.assert_array_equal(crop(rows, corners, 10), rows)
