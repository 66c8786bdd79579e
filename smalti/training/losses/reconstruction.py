"""The loss between a picture and its reconstruction, as a weighted sum of simple errors."""

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field

from smalti.models.layers import average_squares
from smalti.training.losses.colour import oklab_difference
from smalti.validation import Strict

COARSEST = 8
"""Side in pixels of the largest squares in which errors are averaged."""
Weight = Annotated[float, Field(ge=0)]


class LossWeights(Strict):
    """Weights of the terms of the loss. Pixels are compared in [-1, 1]. A term with the weight 0 is not computed."""

    absolute: Weight = 1.0
    square: Weight = 2.0
    edges: Weight = 0.5
    """Weight of the absolute error of the differences between neighbouring pixels, across and down."""
    coarse: Weight = 0.0
    """Weight of the absolute error of the means of squares of 4 by 4 and of 8 by 8 pixels: blotches, which count little
    pixel by pixel."""
    colour: Weight = 0.0
    """Weight of the absolute error in OKLab."""
    colour_weights: tuple[Weight, Weight, Weight] = (1.0, 2.0, 2.0)
    """Weights of OKLab's three coordinates in `colour`: lightness, green to red, blue to yellow."""
    codebook: Weight = 0.5
    commitment: Weight = 0.25


def reconstruction_loss(
    weights: LossWeights,
    reconstructed: Float[Array, "pictures height width 3"],
    pixels: Float[Array, "pictures height width 3"],
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Compares pictures with their reconstructions; all have pixels in [0, 1].

    Returns:
        the weighted sum of the terms, without the codebook's; and each term without its weight.
    """
    error = 2 * (reconstructed - pixels)
    terms = {"absolute": jnp.abs(error).mean(), "square": jnp.square(error).mean()}
    terms["edges"] = jnp.abs(jnp.diff(error, axis=1)).mean() + jnp.abs(jnp.diff(error, axis=2)).mean()
    if weights.coarse:
        fours = average_squares(error, COARSEST // 2)
        terms["coarse"] = jnp.abs(fours).mean() + jnp.abs(average_squares(fours, 2)).mean()
    if weights.colour:
        difference = oklab_difference(reconstructed, pixels)
        terms["colour"] = jnp.abs(difference * jnp.array(weights.colour_weights)).mean()
    total = sum((getattr(weights, name) * value for name, value in terms.items()), start=jnp.float32(0))
    return total, terms
