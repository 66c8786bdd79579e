"""Which colours of a thing look alike: a heart in its own colours and a red heart are one picture to the eye.

A judge of colour must not be asked to tell such pictures apart, nor may a model be blamed for drawing the one for
the other. Which they are follows from the world's pictures alone, so no model has a say in it.
"""

import numpy as np
from jaxtyping import Bool, Float

from smalti.training.data.world.attributes import Attributes, Figure
from smalti.training.data.world.colours import to_oklab
from smalti.training.data.world.composition import World, compose
from smalti.training.data.world.description import PLAIN

MAX_DISTANCE = 0.08
"""Mean OKLab distance over a thing's pixels up to which two colours of it look alike. The nearest two tints of the
shipped world are farther apart for every thing, so only a tint and a thing's own colours can look alike."""
_GROUND_DISTANCE = 0.02
"""Pixels that differ less from the background belong to it."""


def acceptable_colours(world: World) -> Bool[np.ndarray, "things colours colours"]:
    """Says for every thing and every colour asked for which colours are right: itself, and those that look like it.

    Two colours look alike if they do in one of the styles, since a prompt leaves the style open.
    """
    count = len(world.colours)
    alike = np.zeros((len(world.things), count, count), bool)
    for row, thing in enumerate(world.things):
        distances = np.stack([_distances(world, thing, style) for style in world.styles])
        alike[row] = distances.min(0) <= MAX_DISTANCE
    return alike


def _distances(world: World, thing: str, style: str) -> Float[np.ndarray, "colours colours"]:
    """Mean OKLab distances between a thing's colours, over the pixels that it covers in any of them."""
    pictures = [compose(world, Attributes((Figure(thing, colour),), style)) for colour in world.colours]
    labs = to_oklab(np.stack(pictures))
    ground = to_oklab(world.grounds[PLAIN].astype(np.uint8))
    covered = (np.linalg.norm(labs - ground, axis=-1) > _GROUND_DISTANCE).any(0)
    apart = np.linalg.norm(labs[:, None] - labs[None], axis=-1)
    return apart[..., covered].mean(-1)
