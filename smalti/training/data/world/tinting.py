"""Tinting: things in another colour, and how well their outlines stand out from a background."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float, UInt8

from smalti.training.data.world.colours import ramp, to_oklab

_GAIN = 0.9
"""Share of a thing's own light and shade that its tint keeps."""
_RIM_DEPTH = 2


def tones(sprite: UInt8[np.ndarray, "height width 4"]) -> UInt8[np.ndarray, "height width"]:
    """Returns the position of each pixel of a sprite on a ramp of tones.

    Light and shade are relative to the mean lightness of the thing, so that a ghost and a top hat both get the colour
    itself, and not its lightest or darkest tone.
    """
    lightness = to_oklab(sprite[..., :3])[..., 0]
    weight = sprite[..., 3].astype(np.float64)
    middle = (lightness * weight).sum() / weight.sum()
    return np.rint(128 + 255 * _GAIN * (lightness - middle)).clip(0, 255).astype(np.uint8)


def tint(
    sprite: UInt8[np.ndarray, "height width 4"], colour: tuple[int, int, int]
) -> UInt8[np.ndarray, "height width 4"]:
    """Returns a sprite in another colour, with its light, shade and outline."""
    return np.concatenate([ramp(colour)[tones(sprite)], sprite[..., 3:]], axis=-1)


def contrasts(
    sprite: UInt8[np.ndarray, "height width 4"],
    colours: Iterable[tuple[int, int, int]],
    backgrounds: UInt8[np.ndarray, "backgrounds 3"],
) -> Float[np.ndarray, "tints backgrounds"]:
    """Measures how well a thing stands out in its own colours (first) and in others.

    Returns:
        the OKLab distance to each background that three quarters of the outline's pixels exceed.
    """
    outline = rim(sprite[..., 3], _RIM_DEPTH)
    own = _distances(sprite[outline][:, :3], backgrounds)
    shades = tones(sprite)[outline]
    tinted = [_distances(ramp(colour), backgrounds)[shades] for colour in colours]
    quarter = len(shades) // 4
    return np.partition(np.stack([own, *tinted]), quarter, axis=1)[:, quarter]


def rim(alpha: UInt8[np.ndarray, "height width"], depth: int) -> Bool[np.ndarray, "height width"]:
    """Returns a mask of the visible pixels that are at most `depth` pixels away from transparent ones."""
    inside = np.pad(alpha > 127, depth)
    core = inside
    for _ in range(depth):
        shifted = [np.roll(core, step, axis) for step in (1, -1) for axis in (0, 1)]
        core = core & np.logical_and.reduce(shifted)
    return (inside & ~core)[depth:-depth, depth:-depth]


def _distances(
    pixels: UInt8[np.ndarray, "pixels 3"], backgrounds: UInt8[np.ndarray, "backgrounds 3"]
) -> Float[np.ndarray, "pixels backgrounds"]:
    return np.linalg.norm(to_oklab(pixels)[:, None] - to_oklab(backgrounds), axis=-1)
