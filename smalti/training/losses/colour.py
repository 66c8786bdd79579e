"""OKLab, a colour space in which equal distances look about equally different.

Björn Ottosson 2020, https://bottosson.github.io/posts/oklab/, with the matrices of 2021-01-25.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from smalti.training.data.world.colours import TO_CONE, TO_LAB

_CONES, _LAB = TO_CONE.astype(np.float32), TO_LAB.astype(np.float32)
_EXACT = jax.lax.Precision.HIGHEST
_DARK = 1e-3
"""Linear light below which the cube root is replaced by its tangent; about 3 of 255 in sRGB."""


def oklab(pixels: Float[Array, "*pixels 3"]) -> Float[Array, "*pixels 3"]:
    """Converts sRGB in [0, 1] to OKLab: lightness in [0, 1], green to red, blue to yellow.

    The cube root has no finite slope at 0, so black would have an infinite gradient. Below `_DARK` its tangent takes
    its place, which is also defined for the values outside [0, 1] that an untrained decoder draws.
    """
    return jnp.dot(_roots(pixels), _LAB.T, precision=_EXACT)


def oklab_difference(a: Float[Array, "*pixels 3"], b: Float[Array, "*pixels 3"]) -> Float[Array, "*pixels 3"]:
    """Returns `oklab(a) - oklab(b)`, with one product less."""
    return jnp.dot(_roots(a) - _roots(b), _LAB.T, precision=_EXACT)


def _roots(pixels: Float[Array, "*pixels 3"]) -> Float[Array, "*pixels 3"]:
    """Returns the cube roots of what the eye's three kinds of cones get."""
    cones = jnp.dot(_linear(pixels), _CONES.T, precision=_EXACT)
    root = _DARK ** (1 / 3)
    tangent = root + (cones - _DARK) / (3 * root**2)
    return jnp.where(cones > _DARK, _power(jnp.maximum(cones, _DARK), 1 / 3), tangent)


def _linear(values: Float[Array, "*values"]) -> Float[Array, "*values"]:
    """Converts sRGB to linear light (IEC 61966-2-1)."""
    # The inner maximum keeps the branch that is not taken from having an undefined gradient.
    bright = _power((jnp.maximum(values, 0.04045) + 0.055) / 1.055, 2.4)
    return jnp.where(values > 0.04045, bright, values / 12.92)


def _power(values: Float[Array, "*values"], exponent: float) -> Float[Array, "*values"]:
    # XLA's CPU backend takes twice as long for its own power.
    return jnp.exp(exponent * jnp.log(values))
