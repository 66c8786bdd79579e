"""Learning a codebook: nearest directions, straight-through gradients, and new life for codes that nobody uses.

Vectors are compared by their direction alone (Yu et al. 2021, https://arxiv.org/abs/2110.04627, section 3.2), and all
codes are kept at one length. Among codes of one length the nearest by direction is the nearest by distance too, so
the trained codebook is an ordinary one: `smalti.models.vqgan` finds the same codes without knowing of this.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def on_sphere(vectors: Float[Array, "*places embed_dim"]) -> Float[Array, "*places embed_dim"]:
    """Scales vectors to the length √embed_dim, at which a coordinate is 1 in the mean square."""
    return vectors * jax.lax.rsqrt(jnp.square(vectors).mean(-1, keepdims=True) + 1e-8)


def quantize(
    vectors: Float[Array, "batch rows columns embed_dim"],
    codebook: Float[Array, "codes embed_dim"],
    commitment: float,
) -> tuple[Float[Array, "batch rows columns embed_dim"], Int[Array, "batch rows columns"], Float[Array, ""]]:
    """Replaces vectors by their nearest codes.

    Args:
        vectors: on the sphere.
        codebook: on the sphere.
        commitment: how much the vectors are drawn to their codes, against the codes to their vectors.

    Returns:
        the codes' vectors, whose gradient goes straight through to `vectors`; the codes; and the loss of
        van den Oord et al. 2017 (https://arxiv.org/abs/1711.00937, equation 3), as of vectors of length 1.
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
    vectors: Float[Array, "places embed_dim"],
    key: Array,
    spread: float = 0.02,
) -> Float[Array, "codes embed_dim"]:
    """Moves each code that was never used onto a vector of the batch, a little aside so that no two are equal.

    Args:
        codebook: on the sphere.
        used: how often each code was nearest since the last time.
        vectors: of a batch, on the sphere.
        key: chooses among them.
        spread: how far aside, for vectors of length 1.
    """
    choose, shift = jax.random.split(key)
    chosen = vectors[jax.random.randint(choose, (len(codebook),), 0, len(vectors))]
    aside = jax.random.normal(shift, codebook.shape) * spread * codebook.shape[-1] ** 0.5
    return jnp.where(used[:, None] == 0, on_sphere(chosen + aside), codebook)
