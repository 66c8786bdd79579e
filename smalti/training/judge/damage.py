"""Pictures damaged on purpose, so that a judge learns what a whole thing is.

The damage is what a generator's mistakes look like: two things run together, parts in the wrong place, a melted
outline, a blob of the right colour, half a thing. Colour and background stay what they were, so that only the shape
tells. Damage is coarse: a person would no longer say that the picture shows the thing whole.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy.ndimage import map_coordinates

Picture = UInt8[np.ndarray, "height width 3"]
Damage = Callable[[Picture, Picture, np.random.Generator], Picture]
"""A picture, another thing in the same colour on the same background, and random numbers, to a damaged picture."""

_CELLS = 8
"""A damaged part is a cell of this grid, or of one that is shifted against it: as large as a tile."""
_SHARES = (0.35, 0.65)
"""How much of what is visible is damaged."""
_WARP = (0.13, 0.2)
"""How far a melted outline moves, as a share of the picture's side."""
_GROUND_DIFFERENCE = 16


def mix(picture: Picture, other: Picture, generator: np.random.Generator) -> Picture:
    """Takes cells of the other thing."""
    chosen = _cells(picture, generator)
    return np.where(chosen[..., None], other, picture)


def join(picture: Picture, other: Picture, generator: np.random.Generator) -> Picture:
    """Takes the other thing beyond a line."""
    side = len(picture)
    rows, columns = np.mgrid[:side, :side] - side / 2
    angle = generator.uniform(0, 2 * np.pi)
    beyond = rows * np.sin(angle) + columns * np.cos(angle) > generator.uniform(-0.06, 0.06) * side
    return np.where(beyond[..., None], other, picture)


def scatter(picture: Picture, other: Picture, generator: np.random.Generator) -> Picture:
    """Puts parts of the thing where other parts of it were."""
    size = len(picture) // _CELLS
    visible = np.argwhere(_by_cell(figure(picture)).mean((1, 3)) > 0.2)
    moved = generator.permutation(visible)
    result = picture.copy()
    for (row, column), (from_row, from_column) in zip(visible, moved, strict=True):
        result[row * size : (row + 1) * size, column * size : (column + 1) * size] = picture[
            from_row * size : (from_row + 1) * size, from_column * size : (from_column + 1) * size
        ]
    return result


def melt(picture: Picture, other: Picture, generator: np.random.Generator) -> Picture:
    """Bends the thing out of shape."""
    return warp(picture, generator, generator.uniform(*_WARP) * len(picture))


def blob(picture: Picture, other: Picture, generator: np.random.Generator) -> Picture:
    """Leaves a blob of the thing's colours."""
    side = len(picture)
    visible = figure(picture)
    if not visible.any():
        return picture
    rows, columns = np.nonzero(visible)
    middle = rows.mean(), columns.mean()
    # A circle of the thing's area, whose radius follows smooth noise.
    distance = np.hypot(*(np.mgrid[:side, :side] - np.reshape(middle, (2, 1, 1))))
    radius = np.sqrt(visible.sum() / np.pi) * (1 + 0.35 * smooth_noise(side, generator, 6))
    inside = distance < radius
    # The thing's pixels in order of lightness, laid out along smooth noise.
    pixels = picture[visible]
    pixels = pixels[np.argsort(pixels.sum(-1))]
    order = smooth_noise(side, generator, int(generator.integers(3, 8)))[inside].argsort().argsort()
    result = np.broadcast_to(ground_of(picture), picture.shape).copy()
    result[inside] = pixels[order * len(pixels) // max(len(order), 1)]
    return result


def cut(picture: Picture, other: Picture, generator: np.random.Generator) -> Picture:
    """Takes half of the thing away."""
    empty = np.broadcast_to(ground_of(picture), picture.shape)
    return join(picture, empty, generator)


def erase(picture: Picture, other: Picture, generator: np.random.Generator) -> Picture:
    """Leaves the background alone."""
    return np.broadcast_to(ground_of(picture), picture.shape).copy()


DAMAGES: dict[str, tuple[float, Damage]] = {
    "mixed with another": (0.24, mix),
    "joined to another": (0.2, join),
    "parts scattered": (0.14, scatter),
    "melted": (0.16, melt),
    "a blob": (0.12, blob),
    "half missing": (0.1, cut),
    "nothing there": (0.04, erase),
}
"""How often which damage is done; they add up to 1."""


def damage(picture: Picture, other: Picture, generator: np.random.Generator) -> Picture:
    """Damages a picture in one of many ways."""
    shares, ways = zip(*DAMAGES.values(), strict=True)
    return ways[generator.choice(len(ways), p=shares)](picture, other, generator)


def warp(picture: Picture, generator: np.random.Generator, most: float) -> Picture:
    """Moves every pixel by up to `most` pixels, neighbours nearly alike."""
    side = len(picture)
    moves = np.stack([smooth_noise(side, generator, 5) for _ in range(2)])
    places = np.mgrid[:side, :side] + most * moves / max(float(np.abs(moves).max()), 1e-6)
    moved = [map_coordinates(picture[..., channel], places, order=1, mode="nearest") for channel in range(3)]
    return np.stack(moved, axis=-1)


def figure(picture: Picture) -> Bool[np.ndarray, "height width"]:
    """Marks what is not background."""
    return np.abs(picture.astype(np.int16) - ground_of(picture)).max(-1) > _GROUND_DIFFERENCE


def ground_of(picture: Picture) -> UInt8[np.ndarray, "3"]:
    """Returns the background's colour: the median of the picture's border."""
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    return np.median(border, axis=0).astype(np.uint8)


def smooth_noise(side: int, generator: np.random.Generator, cells: int) -> Float[np.ndarray, "side side"]:
    """Draws noise of mean 0 and deviation about 1 that is smooth over a grid of so many cells."""
    coarse = Image.fromarray(generator.normal(size=(cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float64)


def _cells(picture: Picture, generator: np.random.Generator) -> Bool[np.ndarray, "height width"]:
    """Chooses some of the cells that show something."""
    size = len(picture) // _CELLS
    visible = _by_cell(figure(picture)).mean((1, 3)) > 0.1
    chosen = visible & (generator.random(visible.shape) < generator.uniform(*_SHARES))
    cells = np.kron(chosen, np.ones((size, size), bool))
    return np.roll(cells, tuple(generator.integers(-(size // 2), size // 2 + 1, 2)), (0, 1))


def _by_cell(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "rows size columns size"]:
    size = len(mask) // _CELLS
    return mask.reshape(_CELLS, size, _CELLS, size)
