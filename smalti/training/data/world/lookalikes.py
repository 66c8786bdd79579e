"""Colours of a thing that look alike, such as a heart in its own colours and a red heart.

A judge cannot tell such pictures apart, and a model that draws one for the other is right. Which colours look alike
follows from the world's pictures alone; no model influences it.
"""

import numpy as np
from jaxtyping import Bool, Float

from smalti.training.data.world.attributes import Attributes, Figure
from smalti.training.data.world.colours import to_oklab
from smalti.training.data.world.composition import World, compose
from smalti.training.data.world.description import PLAIN

MAX_DISTANCE = 0.08
"""Maximal mean OKLab distance, over the pixels of a thing, of two colours that look alike. In the shipped world all
tints of a thing are farther apart than this, so only a tint and the thing's own colours can look alike."""
_GROUND_DISTANCE = 0.02
"""Pixels with at most this OKLab distance from the background belong to it."""


def acceptable_colours(world: World) -> Bool[np.ndarray, "things colours colours"]:
    """Returns which colours count as right, for each thing and requested colour: that colour and its lookalikes.

    Colours that look alike in one style are lookalikes, since a prompt leaves the style open.
    """
    count = len(world.colours)
    alike = np.zeros((len(world.things), count, count), bool)
    for row, thing in enumerate(world.things):
        distances = np.stack([_distances(world, thing, style) for style in world.styles])
        alike[row] = distances.min(0) <= MAX_DISTANCE
    return alike


def _distances(world: World, thing: str, style: str) -> Float[np.ndarray, "colours colours"]:
    """Returns the mean OKLab distances between the colours of a thing, over the pixels that it covers in any colour."""
    pictures = [compose(world, Attributes((Figure(thing, colour),), style)) for colour in world.colours]
    labs = to_oklab(np.stack(pictures))
    ground = to_oklab(world.grounds[PLAIN].astype(np.uint8))
    covered = (np.linalg.norm(labs - ground, axis=-1) > _GROUND_DISTANCE).any(0)
    apart = np.linalg.norm(labs[:, None] - labs[None], axis=-1)
    return apart[..., covered].mean(-1)
