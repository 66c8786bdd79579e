"""Backgrounds: plain colours, patterns and scenes, drawn with numpy at any resolution."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from smalti.training.data.world.colours import to_oklab, to_srgb
from smalti.training.data.world.description import PLAIN, Pattern, Rgb, SceneName, WorldDescription
from smalti.training.data.world.layout import REFERENCE

Plane = Float[np.ndarray, "side side"]
Ground = UInt8[np.ndarray, "side side 3"]
WHITE: Rgb = (255, 255, 255)

_SECOND_LIGHTNESS = 0.07
"""Difference in OKLab lightness of the two tones of a pattern."""
_SECOND_CHROMA = 1.5
_DARK = 0.5
"""Below this lightness the second tone of a pattern is the lighter one."""
_OVERSAMPLING = 4


class GroundKind(NamedTuple):
    """What a background is made of."""

    colour: str | None
    """The plain colour, also of a pattern; None for a scene."""
    kind: Pattern | SceneName | None
    """The pattern or scene; None for a plain colour."""
    tones: tuple[Rgb, ...]
    """The colours of which it is drawn."""


def ground_kinds(description: WorldDescription) -> dict[str, GroundKind]:
    """Returns all backgrounds of a world by name: white, plain colours, patterns in each colour, scenes."""
    kinds = {PLAIN: GroundKind(PLAIN, None, (WHITE,))}
    for colour, rgb in description.backgrounds.items():
        kinds[colour] = GroundKind(colour, None, (rgb,))
    for pattern in description.patterns:
        for colour, rgb in description.backgrounds.items():
            kinds[f"{pattern} {colour}"] = GroundKind(colour, pattern, (rgb, second_tone(rgb)))
    for name, scene in description.scenes.items():
        kinds[name] = GroundKind(None, name, scene.colours)
    return kinds


def second_tone(colour: Rgb) -> Rgb:
    """Returns the other tone of a pattern: a deeper one of the same hue, or a lighter one of a dark colour."""
    lab = to_oklab(np.array(colour, np.uint8))
    step = -_SECOND_LIGHTNESS if lab[0] > _DARK else 2 * _SECOND_LIGHTNESS
    lab[0] += step
    red, green, blue = to_srgb(lab * [1, _SECOND_CHROMA, _SECOND_CHROMA]).tolist()
    return red, green, blue


def draw_ground(kind: GroundKind, side: int, variant: int) -> Ground:
    """Draws a background.

    Args:
        kind: what to draw.
        side: side of the picture.
        variant: which of its pictures, from 0 on; plain colours have only one.
    """
    if kind.kind is None:
        return np.full((side, side, 3), kind.tones[0], np.uint8)
    # Drawn larger and averaged, so that edges are smooth at every resolution.
    fine = side * _OVERSAMPLING
    steps = (np.arange(fine) + 0.5) / fine * REFERENCE
    x, y = np.meshgrid(steps, steps)
    drawn = _DRAWINGS[kind.kind](x, y, [np.array(tone, float) for tone in kind.tones], variant)
    pixels = drawn.reshape(side, _OVERSAMPLING, side, _OVERSAMPLING, 3).mean((1, 3))
    return np.rint(pixels.clip(0, 255)).astype(np.uint8)


Tones = Sequence[Float[np.ndarray, " 3"]]
Drawing = Callable[[Plane, Plane, Tones, int], Float[np.ndarray, "side side 3"]]


def _mix(one: np.ndarray, other: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Mixes two colours, or pictures, by the share of the other one in each pixel."""
    return one + (other - one) * np.clip(share, 0, 1)[..., None]


def _striped(x: Plane, y: Plane, tones: Tones, variant: int) -> np.ndarray:
    across = (x, y, (x + y) * 0.7071, (x - y) * 0.7071)[variant]
    return _mix(tones[0], tones[1], (across / 6 % 2 < 1).astype(float))


def _dotted(x: Plane, y: Plane, tones: Tones, variant: int) -> np.ndarray:
    size = (10.6667, 12.8, 10.6667, 16)[variant]
    shifted = x + size / 2 * (np.floor(y / size) % 2) if variant % 2 == 0 else x
    distance = np.hypot(shifted % size - size / 2, y % size - size / 2)
    return _mix(tones[0], tones[1], (distance < 0.3 * size).astype(float))


def _checked(x: Plane, y: Plane, tones: Tones, variant: int) -> np.ndarray:
    size = (8, 10.6667, 8, 6.4)[variant]
    return _mix(
        tones[0], tones[1], ((np.floor(x / size) + np.floor(y / size) + variant) % 2 < 1).astype(float)
    )


def _gradient(x: Plane, y: Plane, tones: Tones, variant: int) -> np.ndarray:
    along = (y, 64 - y, (x + y) / 2, x)[variant] / 64
    light = tones[0] + (255 - tones[0]) * 0.45
    return _mix(light, tones[1] + (tones[1] - tones[0]) * 0.6, along)


def _hills(x: Plane, base: float, height: float, length: float, phase: float) -> Plane:
    return base + height * np.sin(x / length + phase)


def _spots(count: int, variant: int, low: float, high: float) -> np.ndarray:
    """Returns places of small details, a fixed list for each variant: right, down and a number in [0, 1)."""
    spots = np.random.Generator(np.random.Philox(key=(7, variant))).random((count, 3))
    spots[:, 0] *= 64
    spots[:, 1] = low + (high - low) * spots[:, 1]
    return spots


def _sprinkle(
    picture: np.ndarray, x: Plane, y: Plane, spots: np.ndarray, colour: object, radius: float
) -> None:
    for right, down, size in spots:
        near = np.hypot(x - right, y - down) < radius * (0.6 + 0.8 * size)
        picture[near] = colour


def _sky(x: Plane, y: Plane, tones: Tones, variant: int) -> np.ndarray:
    picture = _mix(tones[0], tones[1], y / 64)
    for right, down, size in _spots(4, variant, 6, 58):
        for step, lift in ((-1, 0.8), (0, 0), (1, 0.8)):
            radius = (3 + 3 * size) * (1 - 0.25 * abs(step))
            near = np.hypot((x - right - step * radius) * 0.8, y - down - lift) < radius
            picture[near & (y < down + 1 + radius * 0.3)] = tones[2]
    return picture


def _meadow(x: Plane, y: Plane, tones: Tones, variant: int) -> np.ndarray:
    horizon = (36, 40, 33, 38)[variant]
    picture = _mix(tones[0], tones[0] + (255 - tones[0]) * 0.5, y / horizon)
    picture[y > _hills(x, horizon, 2.5, 9, variant * 1.7)] = tones[1]
    picture[y > _hills(x, horizon + 9, 2, 13, 2 + variant)] = tones[2]
    blades = _spots(26, variant, horizon + 12, 63)
    for right, down, size in blades:
        picture[(np.abs(x - right) < 0.5) & (np.abs(y - down) < 1 + size)] = tones[1] * 0.88
    return picture


def _beach(x: Plane, y: Plane, tones: Tones, variant: int) -> np.ndarray:
    horizon, shore = ((20, 40), (24, 42), (18, 37), (22, 44))[variant]
    picture = _mix(tones[0], tones[0] + (255 - tones[0]) * 0.5, y / horizon)
    picture[y > horizon] = tones[1]
    edge = _hills(x, shore, 1.6, 7, variant * 2)
    picture[y > edge - 1.6] = (250, 252, 252)
    picture[y > edge] = tones[2]
    _sprinkle(picture, x, y, _spots(14, variant, shore + 5, 63), tones[2] * 0.9, 0.5)
    return picture


def _sea(x: Plane, y: Plane, tones: Tones, variant: int) -> np.ndarray:
    horizon = (26, 30, 23, 28)[variant]
    picture = _mix(tones[0], tones[0] + (255 - tones[0]) * 0.5, y / horizon)
    for row in range(7):
        crest = horizon + row * 6 + 1.3 * np.abs(np.sin(x / 4.5 + row * 2.1 + variant))
        picture[y > crest] = tones[1 + row % 2]
    return picture


def _underwater(x: Plane, y: Plane, tones: Tones, variant: int) -> np.ndarray:
    picture = _mix(tones[0], tones[1], y / 56)
    rays = np.sin((x - y * 0.4) / 5 + variant * 2) > 0.75
    picture[rays & (y < 34)] += 12
    for right, down, size in _spots(12, variant, 4, 54):
        distance, radius = np.hypot(x - right, y - down), 0.9 + 1.3 * size
        picture[(distance < radius) & (distance > radius - 0.6)] = (225, 244, 252)
    picture[y > _hills(x, 58, 1.5, 8, variant * 2.3)] = tones[2]
    return picture


def _snow(x: Plane, y: Plane, tones: Tones, variant: int) -> np.ndarray:
    horizon = (40, 43, 37, 41)[variant]
    picture = _mix(tones[0], tones[1], y / horizon)
    picture[y > _hills(x, horizon, 2.5, 10, variant * 1.9)] = tones[2]
    picture[y > _hills(x, horizon + 10, 2, 12, 2 + variant)] = tones[2] * 0.97
    _sprinkle(picture, x, y, _spots(34, variant, 0, 62), (255, 255, 255), 0.9)
    return picture


def _desert(x: Plane, y: Plane, tones: Tones, variant: int) -> np.ndarray:
    horizon = (34, 38, 31, 36)[variant]
    picture = _mix(tones[0], tones[0] + (255 - tones[0]) * 0.5, y / horizon)
    picture[y > _hills(x, horizon, 5, 11, variant * 1.6)] = tones[1]
    picture[y > _hills(x, horizon + 10, 4, 14, 1.5 + variant * 2.2)] = tones[2]
    return picture


def _sunset(x: Plane, y: Plane, tones: Tones, variant: int) -> np.ndarray:
    horizon = (46, 50, 43, 48)[variant]
    picture = _mix(tones[0], tones[1], y / horizon)
    for right, down, size in _spots(5, variant, 8, horizon - 8):
        band = (np.abs(y - down) < 0.9) & (np.abs(x - right) < 8 + 10 * size)
        picture[band] = picture[band] * 0.6 + tones[1] * 0.4
    picture[y > horizon] = tones[2]
    return picture


def _night(x: Plane, y: Plane, tones: Tones, variant: int) -> np.ndarray:
    horizon = (50, 53, 48, 51)[variant]
    picture = _mix(tones[0], tones[1], y / horizon)
    _sprinkle(picture, x, y, _spots(30, variant, 1, horizon - 3), (250, 245, 205), 0.7)
    picture[y > _hills(x, horizon, 2, 10, variant * 2.4)] = tones[2]
    return picture


_DRAWINGS: dict[Pattern | SceneName, Drawing] = {
    "striped": _striped,
    "dotted": _dotted,
    "checked": _checked,
    "gradient": _gradient,
    "sky": _sky,
    "meadow": _meadow,
    "beach": _beach,
    "sea": _sea,
    "underwater": _underwater,
    "snow": _snow,
    "desert": _desert,
    "sunset": _sunset,
    "night": _night,
}
