"""Perceptual colours: conversion between sRGB and OKLab, and ramps with one hue from dark to light.

The formulas are from Björn Ottosson, "A perceptual color space for image processing" (2020). In OKLab the Euclidean
distance of two colours measures how different they look, and colours on a straight line share a hue.
"""

from functools import cache

import numpy as np
from jaxtyping import Float, UInt8

# A row for each result, a column for each input.
TO_CONE = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)

DARK_END = 0.35
"""Lightness of the dark end of a ramp, as a share of the colour's lightness."""
LIGHT_END = 0.75
"""Position of the light end of a ramp between the colour's lightness (0) and white (1)."""
_DARK_CHROMA = 0.7
_LIGHT_CHROMA = 0.5


def to_oklab(pixels: UInt8[np.ndarray, "*shape 3"]) -> Float[np.ndarray, "*shape 3"]:
    """Converts sRGB to OKLab: lightness in [0, 1], green-red axis, blue-yellow axis."""
    encoded = pixels.astype(np.float64) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ TO_CONE.T) @ TO_LAB.T


def to_srgb(lab: Float[np.ndarray, "*shape 3"]) -> UInt8[np.ndarray, "*shape 3"]:
    """Converts OKLab to sRGB; colours outside sRGB are clipped."""
    linear = ((lab @ np.linalg.inv(TO_LAB).T) ** 3) @ np.linalg.inv(TO_CONE).T
    linear = linear.clip(0, 1)
    encoded = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(encoded * 255).astype(np.uint8)


@cache
def ramp(colour: tuple[int, int, int]) -> UInt8[np.ndarray, "256 3"]:
    """Returns 256 tones of a colour, from dark to light, with the colour itself at 128.

    The ends are not black and white, so that even the lightest and the darkest tone show the hue.
    """
    middle = to_oklab(np.array(colour, np.uint8))
    dark = middle * [DARK_END, _DARK_CHROMA, _DARK_CHROMA]
    light = middle * [1, _LIGHT_CHROMA, _LIGHT_CHROMA]
    light[0] += LIGHT_END * (1 - middle[0])
    tones = np.arange(256)
    lab = np.stack([np.interp(tones, [0, 128, 255], axis) for axis in zip(dark, middle, light, strict=True)])
    return to_srgb(lab.T)
