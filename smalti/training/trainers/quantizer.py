"""Learning a codebook: nearest codes by direction, straight-through gradients, and restarts of unused codes.

Vectors are compared by direction alone (Yu et al. 2021, https://arxiv.org/abs/2110.04627, section 3.2), and all codes
have the same length. Among such codes the nearest by direction is also the nearest by distance, so the trained
codebook is an ordinary one, and `smalti.models.vqgan` finds the same codes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def on_sphere(vectors: Float[Array, "*positions embed_dim"]) -> Float[Array, "*positions embed_dim"]:
    """Scales vectors to the length √embed_dim, at which the mean square of the coordinates is 1."""
    return vectors * jax.lax.rsqrt(jnp.square(vectors).mean(-1, keepdims=True) + 1e-8)


def quantize(
    vectors: Float[Array, "batch rows columns embed_dim"],
    codebook: Float[Array, "codes embed_dim"],
    commitment: float,
) -> tuple[Float[Array, "batch rows columns embed_dim"], Int[Array, "batch rows columns"], Float[Array, ""]]:
    """Replaces each vector by the nearest code.

    Args:
        vectors: on the sphere.
        codebook: on the sphere.
        commitment: weight of the term that moves vectors to their codes; the other term, which moves codes to their
            vectors, has the weight 1.

    Returns:
        the vectors of the codes, whose gradient passes straight through to `vectors`; the codes; and the loss of
        van den Oord et al. 2017 (https://arxiv.org/abs/1711.00937, equation 3), for vectors of length 1.
    """
    codes = jnp.argmax(
        jnp.einsum("...d,kd->...k", vectors, codebook, precision=jax.lax.Precision.HIGHEST), -1
    )
    nearest = codebook[codes]
    fixed = jax.lax.stop_gradient
    to_vectors = jnp.square(nearest - fixed(vectors)).mean()
    to_codes = jnp.square(vectors - fixed(nearest)).mean()
    return vectors + fixed(nearest - vectors), codes, to_vectors + commitment * to_codes


def restart_dead(
    codebook: Float[Array, "codes embed_dim"],
    used: Int[Array, " codes"],
    vectors: Float[Array, "positions embed_dim"],
    key: Array,
    spread: float = 0.02,
) -> Float[Array, "codes embed_dim"]:
    """Moves each unused code to a vector of the batch, with a small random shift so that no two codes are equal.

    Args:
        codebook: on the sphere.
        used: number of times that each code was used since the last restart.
        vectors: vectors of a batch, on the sphere.
        key: key of the random choice and shift.
        spread: standard deviation of the shift, for vectors of length 1.
    """
    choose, shift = jax.random.split(key)
    chosen = vectors[jax.random.randint(choose, (len(codebook),), 0, len(vectors))]
    noise = jax.random.normal(shift, codebook.shape) * spread * codebook.shape[-1] ** 0.5
    return jnp.where(used[:, None] == 0, on_sphere(chosen + noise), codebook)
