"""The losses of the tokenizer: OKLab against published values, and the terms of a reconstruction's loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smalti.training.losses.colour import oklab, oklab_difference
from smalti.training.losses.reconstruction import LossWeights, reconstruction_loss


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((1, 1, 1), (1, 0, 0)),
        ((1, 0, 0), (0.62796, 0.22486, 0.12585)),
        ((0, 1, 0), (0.86644, -0.23389, 0.17950)),
        ((0, 0, 1), (0.45201, -0.03246, -0.31153)),
    ],
)
def test_the_corners_of_srgb_have_their_published_coordinates(
    colour: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    np.testing.assert_allclose(oklab(jnp.array(colour, jnp.float32)), expected, atol=5e-5)


def test_gray_has_no_colour_and_a_smooth_lightness_down_to_black_and_below() -> None:
    grays = jnp.repeat(jnp.linspace(-0.05, 1, 2000)[:, None], 3, 1)
    lightness, *colours = np.asarray(oklab(grays)).T
    np.testing.assert_allclose(colours, 0, atol=1e-3)
    assert (np.diff(lightness) > 0).all()
    slopes = np.diff(lightness) / np.diff(np.asarray(grays[:, 0]))
    assert (np.abs(np.diff(slopes)) < 0.1).all()


def test_the_gradient_is_finite_at_black_and_outside_the_range() -> None:
    pixels = jnp.array([[0.0, 0.0, 0.0], [-0.5, 0.0, 1.5], [1.0, 0.0, 0.0]])
    gradient = jax.grad(lambda x: oklab(x)[:, 0].sum())(pixels)
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient[0]) > 0).all()
    np.testing.assert_allclose(
        oklab_difference(pixels, pixels[::-1]), oklab(pixels) - oklab(pixels[::-1]), atol=1e-5
    )


def losses(error: np.ndarray, **weights: object) -> tuple[float, dict[str, float]]:
    """Compares a gray picture with one that differs by `error`."""
    pixels = jnp.full((1, 16, 16, 3), 0.5)
    total, terms = reconstruction_loss(
        LossWeights.check(**weights), pixels + jnp.asarray(error, jnp.float32), pixels
    )
    return float(total), {name: float(value) for name, value in terms.items()}


def test_each_term_sees_its_own_kind_of_error() -> None:
    board = np.indices((16, 16)).sum(0) % 2 - 0.5
    checked = 0.1 * board[None, ..., None] * np.ones(3)
    _, terms = losses(checked, coarse=1, colour=1)
    np.testing.assert_allclose(
        [terms["absolute"], terms["square"], terms["edges"]], [0.1, 0.01, 0.4], rtol=1e-4
    )
    assert terms["coarse"] < 1e-5, "the mean of a square hides errors that cancel"
    _, terms = losses(np.full((1, 16, 16, 3), 0.05), coarse=1)
    np.testing.assert_allclose([terms["coarse"], terms["edges"]], [0.2, 0], atol=1e-5)
    assert "colour" not in terms


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    error = np.random.default_rng(0).normal(0, 0.1, (1, 16, 16, 3))
    weights = {"absolute": 0.5, "square": 3.0, "edges": 0.25, "coarse": 2.0, "colour": 4.0}
    total, terms = losses(error, **weights)
    assert terms.keys() == weights.keys()
    assert total == pytest.approx(sum(weights[name] * value for name, value in terms.items()), rel=1e-5)


def test_the_coordinates_of_the_colour_have_weights_of_their_own() -> None:
    lighter = np.full((1, 16, 16, 3), 0.1)
    redder = lighter * np.array([1, -1, 0])
    for error, weights, factor in (
        (lighter, (2, 1, 1), 2.0),
        (lighter, (1, 9, 9), 1.0),
        (redder, (0, 3, 3), 3.0),
    ):
        once = losses(error, colour=1, colour_weights=[int(weight > 0) for weight in weights])[1]["colour"]
        many = losses(error, colour=1, colour_weights=list(weights))[1]["colour"]
        assert many == pytest.approx(factor * once, rel=0.01)
