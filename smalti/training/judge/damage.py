"""Pictures damaged on purpose, from which a judge learns what a whole thing is.

The damage imitates the mistakes of generators: two things run together, parts in the wrong place, a melted outline, a
blob of the right colour, half a thing. Colour and background stay the same, so that only the shape gives the damage
away. Damage is coarse: a person would no longer say that the picture shows a whole thing.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy.ndimage import map_coordinates

Pixels = UInt8[np.ndarray, "height width 3"]
Damage = Callable[[Pixels, Pixels, Pixels, np.random.Generator], Pixels]
"""Damages a picture, with the help of another thing in the same colour on the same background, and the background."""

_CELLS = 8
"""Cells per side of a grid. Damage is done to whole cells, which have the size of a tile."""
_SHARES = (0.35, 0.65)
"""Range of the share of the visible cells that are damaged."""
_WARP = (0.13, 0.2)
"""Range of the shift of a melted outline, as a share of the picture's side."""
_GROUND_DIFFERENCE = 16


def mix(picture: Pixels, other: Pixels, ground: Pixels, generator: np.random.Generator) -> Pixels:
    """Replaces cells by those of the other thing."""
    chosen = _cells(picture, ground, generator)
    return np.where(chosen[..., None], other, picture)


def join(picture: Pixels, other: Pixels, ground: Pixels, generator: np.random.Generator) -> Pixels:
    """Replaces everything beyond a line by the other thing."""
    side = len(picture)
    rows, columns = np.mgrid[:side, :side] - side / 2
    angle = generator.uniform(0, 2 * np.pi)
    beyond = rows * np.sin(angle) + columns * np.cos(angle) > generator.uniform(-0.06, 0.06) * side
    return np.where(beyond[..., None], other, picture)


def scatter(picture: Pixels, other: Pixels, ground: Pixels, generator: np.random.Generator) -> Pixels:
    """Exchanges parts of the thing with each other."""
    size = len(picture) // _CELLS
    visible = np.argwhere(_by_cell(figure(picture, ground)).mean((1, 3)) > 0.2)
    moved = generator.permutation(visible)
    result = picture.copy()
    for (row, column), (from_row, from_column) in zip(visible, moved, strict=True):
        result[row * size : (row + 1) * size, column * size : (column + 1) * size] = picture[
            from_row * size : (from_row + 1) * size, from_column * size : (from_column + 1) * size
        ]
    return result


def melt(picture: Pixels, other: Pixels, ground: Pixels, generator: np.random.Generator) -> Pixels:
    """Bends the thing out of shape."""
    return warp(picture, generator, generator.uniform(*_WARP) * len(picture))


def blob(picture: Pixels, other: Pixels, ground: Pixels, generator: np.random.Generator) -> Pixels:
    """Replaces the thing by a blob of its colours."""
    side = len(picture)
    visible = figure(picture, ground)
    if not visible.any():
        return picture
    rows, columns = np.nonzero(visible)
    middle = rows.mean(), columns.mean()
    # A circle with the area of the thing, whose radius varies with smooth noise.
    distance = np.hypot(*(np.mgrid[:side, :side] - np.reshape(middle, (2, 1, 1))))
    radius = np.sqrt(visible.sum() / np.pi) * (1 + 0.35 * smooth_noise(side, generator, 6))
    inside = distance < radius
    # The pixels of the thing, sorted by lightness and arranged along smooth noise.
    pixels = picture[visible]
    pixels = pixels[np.argsort(pixels.sum(-1))]
    order = smooth_noise(side, generator, int(generator.integers(3, 8)))[inside].argsort().argsort()
    result = ground.copy()
    result[inside] = pixels[order * len(pixels) // max(len(order), 1)]
    return result


def cut(picture: Pixels, other: Pixels, ground: Pixels, generator: np.random.Generator) -> Pixels:
    """Removes half of the thing."""
    return join(picture, ground, ground, generator)


def erase(picture: Pixels, other: Pixels, ground: Pixels, generator: np.random.Generator) -> Pixels:
    """Removes the whole thing."""
    return ground.copy()


DAMAGES: dict[str, tuple[float, Damage]] = {
    "mixed with another": (0.24, mix),
    "joined to another": (0.2, join),
    "parts scattered": (0.14, scatter),
    "melted": (0.16, melt),
    "a blob": (0.12, blob),
    "half missing": (0.1, cut),
    "nothing there": (0.04, erase),
}
"""Share and function of each damage; the shares add up to 1."""


def damage(picture: Pixels, other: Pixels, ground: Pixels, generator: np.random.Generator) -> Pixels:
    """Damages a picture in a random way."""
    shares, ways = zip(*DAMAGES.values(), strict=True)
    return ways[generator.choice(len(ways), p=shares)](picture, other, ground, generator)


def warp(picture: Pixels, generator: np.random.Generator, max_shift: float) -> Pixels:
    """Moves each pixel by up to `max_shift` pixels, and its neighbours by nearly the same."""
    side = len(picture)
    moves = np.stack([smooth_noise(side, generator, 5) for _ in range(2)])
    positions = np.mgrid[:side, :side] + max_shift * moves / max(float(np.abs(moves).max()), 1e-6)
    moved = [
        map_coordinates(picture[..., channel], positions, order=1, mode="nearest") for channel in range(3)
    ]
    return np.stack(moved, axis=-1)


def figure(picture: Pixels, ground: Pixels) -> Bool[np.ndarray, "height width"]:
    """Returns a mask of the pixels that are not background."""
    return np.abs(picture.astype(np.int16) - ground).max(-1) > _GROUND_DIFFERENCE


def smooth_noise(side: int, generator: np.random.Generator, cells: int) -> Float[np.ndarray, "side side"]:
    """Draws noise with mean 0 and deviation about 1, interpolated from a grid of `cells` by `cells`."""
    coarse = Image.fromarray(generator.normal(size=(cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float64)


def _cells(
    picture: Pixels, ground: Pixels, generator: np.random.Generator
) -> Bool[np.ndarray, "height width"]:
    """Returns a mask of some of the visible cells."""
    size = len(picture) // _CELLS
    visible = _by_cell(figure(picture, ground)).mean((1, 3)) > 0.1
    chosen = visible & (generator.random(visible.shape) < generator.uniform(*_SHARES))
    cells = np.kron(chosen, np.ones((size, size), bool))
    return np.roll(cells, tuple(generator.integers(-(size // 2), size // 2 + 1, 2)), (0, 1))


def _by_cell(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "rows size columns size"]:
    size = len(mask) // _CELLS
    return mask.reshape(_CELLS, size, _CELLS, size)
