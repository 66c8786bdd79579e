"""Colours of a thing that look alike, such as a heart in its own colours and a red heart.

A judge cannot tell such pictures apart, and a model that draws one for the other is right. Which colours look alike
follows from the world's pictures alone; no model influences it.
"""

import numpy as np
from jaxtyping import Bool, Float

from smalti.training.data.world.colours import to_oklab
from smalti.training.data.world.composition import World

MAX_DISTANCE = 0.08
"""Maximal mean OKLab distance, over the pixels of a thing, of two colours that look alike."""
_SIDE = 16
"""Side of the pictures that are compared."""


def acceptable_colours(world: World) -> Bool[np.ndarray, "things colours colours"]:
    """Returns which colours count as right, for each thing and requested colour: that colour and its lookalikes.

    Colours that look alike in one style are lookalikes, since a prompt leaves the style open.
    """
    count = len(world.colours)
    alike = np.zeros((len(world.things), count, count), bool)
    for row, thing in enumerate(world.things):
        styles = [style for style in world.styles if world.is_drawn(thing, style)]
        distances = np.stack([_distances(world, thing, style) for style in styles])
        alike[row] = distances.min(0) <= MAX_DISTANCE
    return alike


def _distances(world: World, thing: str, style: str) -> Float[np.ndarray, "colours colours"]:
    """Returns the mean OKLab distances between the colours of a thing, over the pixels that it covers."""
    pictures = np.stack([world.sprite(thing, style, _SIDE, colour) for colour in world.colours])
    alpha = pictures[0, ..., 3]
    labs = to_oklab(pictures[:, alpha > 0, :3])
    apart = np.linalg.norm(labs[:, None] - labs[None], axis=-1)
    return np.asarray(np.average(apart, axis=-1, weights=alpha[alpha > 0]))
