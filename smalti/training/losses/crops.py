"""Square parts of pictures: a loss whose network is costly looks at one part of each."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def crop(
    pictures: Float[Array, "pictures height width 3"], corners: Float[Array, "pictures 2"], side: int
) -> Float[Array, "pictures side side 3"]:
    """Returns a square of each picture.

    Args:
        pictures: the pictures.
        corners: where the upper left corners are, down and across, as shares in [0, 1) of the room that there is.
        side: side of the squares; pictures of this size are returned whole.
    """
    room = pictures.shape[1] - side
    if room == 0:
        return pictures
    starts = jnp.minimum((corners * (room + 1)).astype(jnp.int32), room)
    return jax.vmap(
        lambda picture, start: jax.lax.dynamic_slice(picture, (start[0], start[1], 0), (side, side, 3))
    )(pictures, starts)
