"""Tinting: things in another colour, and how well their outlines stand out from a background."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from smalti.training.data.world.colours import ramp, to_oklab
from smalti.training.data.world.description import Rgb
from smalti.training.data.world.sprites import resize

_GAIN = 0.9
"""Share of a thing's own light and shade that its tint keeps."""
_RIM_DEPTH = 2
_CONTRAST_SIDE = 32
"""Side of the pictures on which contrast is measured."""


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


class ContrastMeter:
    """Measures how well a thing stands out from each background, in its own colours and in each tint."""

    def __init__(self, tints: Sequence[Rgb], grounds: Sequence[Sequence[Rgb]]) -> None:
        """Makes the meter for the tints and for the tones of which each background is drawn."""
        index: dict[Rgb, int] = {}
        self._grounds = [[index.setdefault(tone, len(index)) for tone in tones] for tones in grounds]
        self._tones = to_oklab(np.array(list(index), np.uint8))
        self._shades = np.stack([self._distances(ramp(tint)) for tint in tints])

    def __call__(
        self, sprite: UInt8[np.ndarray, "height width 4"]
    ) -> Float[np.ndarray, "own_and_tints backgrounds"]:
        """Returns the contrast in the thing's own colours (first) and in each tint.

        It is the OKLab distance to a tone that three quarters of the outline's pixels exceed, and the lowest one of
        the background's tones. It is measured at one size, so that it does not depend on that of the sprite's use.
        """
        sprite = resize(sprite, _CONTRAST_SIDE, _CONTRAST_SIDE)
        outline = rim(sprite[..., 3], _RIM_DEPTH)
        own = self._distances(sprite[outline][:, :3])
        shades = tones(sprite)[outline]
        quarter = len(shades) // 4
        by_tone = np.partition(np.stack([own, *self._shades[:, shades]]), quarter, axis=1)[:, quarter]
        return np.stack([by_tone[:, each].min(1) for each in self._grounds], axis=1)

    def _distances(self, pixels: UInt8[np.ndarray, "pixels 3"]) -> Float32[np.ndarray, "pixels tones"]:
        return np.linalg.norm(to_oklab(pixels)[:, None] - self._tones, axis=-1).astype(np.float32)


def rim(alpha: UInt8[np.ndarray, "height width"], depth: int) -> Bool[np.ndarray, "height width"]:
    """Returns a mask of the visible pixels that are at most `depth` pixels away from transparent ones."""
    inside = np.pad(alpha > 127, depth)
    core = inside
    for _ in range(depth):
        shifted = [np.roll(core, step, axis) for step in (1, -1) for axis in (0, 1)]
        core = core & np.logical_and.reduce(shifted)
    return (inside & ~core)[depth:-depth, depth:-depth]
