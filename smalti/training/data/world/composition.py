"""Pictures of a world, composed with captions that say exactly what they show.

Each sample is a function of (world, seed, split, index) alone: a trainer composes pictures on the fly, stores nothing,
and can resume at any index. The splits share no picture:

* `train`: no held-out combination, and no picture of `validation`;
* `validation`: combinations that training sees, in pictures (style, size, position) that it does not see;
* `held_out`: at least one held-out (thing, colour) or (thing, background) in each picture.
"""

import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import UInt8, UInt16

from smalti.errors import InvalidInputError
from smalti.training.data.world import captions
from smalti.training.data.world.attributes import SPLITS, Attributes, Figure, Size, Split, check_split
from smalti.training.data.world.description import (
    NATURAL,
    PLAIN,
    WorldDescription,
    load_description,
)
from smalti.training.data.world.sprites import RESOLUTIONS, Sprites, resize
from smalti.training.data.world.tinting import contrasts, tint

_REFERENCE = 64
_VALIDATION_SHARE = 16
"""One picture in this many, of combinations that are not held out, belongs to `validation`."""
_MAX_ATTEMPTS = 10_000
_DRAWS = 14


class World:
    """A description with its sprites, for pictures of one resolution."""

    def __init__(self, description: WorldDescription, sprites: Sprites, resolution: int = 64) -> None:
        if resolution not in RESOLUTIONS:
            raise InvalidInputError("resolution", f"must be one of {RESOLUTIONS}, not {resolution}")
        if resolution > sprites.resolution:
            raise InvalidInputError(
                "resolution",
                f"must be at most {sprites.resolution}, for which the sprites were made, not {resolution}",
            )
        self.description = description
        self.resolution = resolution
        self.things = tuple(thing.word for thing in description.things)
        self.styles = tuple(style.word for style in description.styles)
        if (self.things, self.styles) != (sprites.things, sprites.styles):
            raise InvalidInputError("sprites", "must have the things and styles of the world's description")
        self.colours = (NATURAL, *description.colours)
        self.backgrounds = (PLAIN, *description.backgrounds)
        self.plurals = frozenset(thing.word for thing in description.things if thing.plural)
        self._sprites = sprites.pixels
        self._row = {word: row for row, word in enumerate(self.things)}
        self._column = {word: column for column, word in enumerate(self.styles)}
        colours = {PLAIN: (255, 255, 255), **description.backgrounds}
        # A whole picture of each background: filling one from three numbers takes as long as everything else.
        self.grounds: dict[str, UInt16[np.ndarray, "side side 3"]] = {
            word: np.full((resolution, resolution, 3), colour, np.uint16) for word, colour in colours.items()
        }
        self._by_word = {thing.word: thing for thing in description.things}
        self._coloured: dict[tuple[str, str, Size, str], UInt16[np.ndarray, "side side 3"]] = {}
        self._kept: dict[tuple[str, str, Size], UInt16[np.ndarray, "side side 3"]] = {}

    @classmethod
    def load(cls, folder: Path, resolution: int = 64) -> "World":
        """Loads a world from the folder that `smalti data build` wrote.

        Raises:
            InvalidInputError: a file is missing or damaged, or the sprites are too small for the resolution.
        """
        return cls(load_description(folder / "world.json"), Sprites.load(folder / "sprites.npz"), resolution)

    def is_held_out(self, attributes: Attributes) -> bool:
        """Returns whether a picture shows a held-out combination."""
        return any(
            figure.colour == self._by_word[figure.thing].held_out.colour
            or attributes.background == self._by_word[figure.thing].held_out.background
            for figure in attributes.figures
        )

    def split_of(self, attributes: Attributes) -> Split:
        """Returns the split that a picture belongs to."""
        if self.is_held_out(attributes):
            return "held_out"
        chosen = zlib.crc32(repr(attributes).encode()) % _VALIDATION_SHARE == 0
        return "validation" if chosen else "train"

    def is_visible(self, attributes: Attributes) -> bool:
        """Returns whether all figures stand out from the background.

        A thing in its own colours on white always does: "a cloud" means a cloud on white.
        """
        ground = self.backgrounds.index(attributes.background)
        return all(
            (figure.colour == NATURAL and attributes.background == PLAIN)
            or self._contrasts[
                self._row[figure.thing],
                self._column[attributes.style],
                self.colours.index(figure.colour),
                ground,
            ]
            >= self.description.smallest_contrast
            for figure in attributes.figures
        )

    def side(self, size: Size) -> int:
        """Returns the side of a figure's square, in pixels."""
        layout = self.description.layout
        return (layout.big if size == "big" else layout.small) * self.resolution // _REFERENCE

    def figure(
        self, thing: str, style: str, size: Size, colour: str
    ) -> tuple[UInt16[np.ndarray, "side side 3"], UInt16[np.ndarray, "side side 3"]]:
        """Returns a figure in the form that `compose` needs, from a cache.

        Returns:
            colours times alpha plus 128, and 255 - alpha.
        """
        key = (thing, style, size, colour)
        if key not in self._coloured:
            side = self.side(size)
            sprite = resize(self._sprites[self._row[thing], self._column[style]], side, side)
            if colour != NATURAL:
                sprite = tint(sprite, self.description.colours[colour])
            alpha = sprite[..., 3:].astype(np.uint16)
            self._coloured[key] = sprite[..., :3] * alpha + np.uint16(128)
            self._kept.setdefault(key[:3], np.repeat(255 - alpha, 3, axis=-1))
        return self._coloured[key], self._kept[key[:3]]

    @cached_property
    def _contrasts(self) -> np.ndarray:
        """Contrast of each outline, `[thing, style, colour, background]`.

        Measured at the same size for all resolutions, so that a seed draws the same attributes at each of them.
        """
        grounds = np.array([self.grounds[word][0, 0] for word in self.backgrounds], np.uint8)
        side = self.description.layout.big
        shape = (len(self.things), len(self.styles), len(self.colours), len(self.backgrounds))
        table = np.zeros(shape)
        for row, column in np.ndindex(shape[:2]):
            sprite = resize(self._sprites[row, column], side, side)
            table[row, column] = contrasts(sprite, self.description.colours.values(), grounds)
        return table


def draw_attributes(world: World, seed: int, index: int, split: Split = "train") -> Attributes:
    """Draws the attributes of a picture; a function of the arguments alone."""
    return _draw(world, _Stream(seed, split).at(index), split)


def compose(world: World, attributes: Attributes) -> UInt8[np.ndarray, "size size 3"]:
    """Composes a picture.

    Raises:
        KeyError: the world lacks the thing, style, colour or background.
    """
    resolution = world.resolution
    side = world.side(attributes.size)
    right, down = (step * resolution // _REFERENCE for step in attributes.offset)
    cell = resolution // len(attributes.figures)
    ground = world.grounds[attributes.background]
    picture = ground.astype(np.uint8)
    top = (resolution - side) // 2 + down
    for index, figure in enumerate(attributes.figures):
        left = index * cell + (cell - side) // 2 + right
        colours, kept = world.figure(figure.thing, attributes.style, attributes.size, figure.colour)
        # (x + 128) / 255 in 16 bits without a division; exact for all x up to 255 * 255.
        mixed = kept * ground[:side, :side]
        mixed += colours
        mixed += mixed >> 8
        mixed >>= 8
        picture[top : top + side, left : left + side] = mixed
    return picture


def caption(attributes: Attributes, generator: np.random.Generator, world: World) -> str:
    """Writes a caption in one of many wordings; every word is true."""
    return captions.write(attributes, generator, world.plurals)


class CompositionDataset:
    """An endless data set of composed pictures, addressed by index.

    Args:
        world: the world, at the resolution of the pictures.
        seed: seed of the samples.
        split: name of the split.

    Raises:
        InvalidInputError: there is no such split.
    """

    def __init__(self, world: World, seed: int = 0, split: str = "train") -> None:
        self.world = world
        self.seed = seed
        self.split = check_split(split)

    def batch(
        self, start: int, count: int
    ) -> tuple[UInt8[np.ndarray, "count height width 3"], list[str], list[Attributes]]:
        """Returns pixels, captions and attributes of the samples `start` to `start + count - 1`."""
        return self.samples(range(start, start + count))

    def samples(
        self, indices: Sequence[int]
    ) -> tuple[UInt8[np.ndarray, "count height width 3"], list[str], list[Attributes]]:
        """Returns pixels, captions and attributes of the samples with the given indices, in their order."""
        resolution = self.world.resolution
        pixels = np.empty((len(indices), resolution, resolution, 3), np.uint8)
        texts, drawn = [], []
        stream = _Stream(self.seed, self.split)
        for row, index in enumerate(indices):
            generator = stream.at(index)
            attributes = _draw(self.world, generator, self.split)
            pixels[row] = compose(self.world, attributes)
            texts.append(caption(attributes, generator, self.world))
            drawn.append(attributes)
        return pixels, texts, drawn


class _Stream:
    """The random numbers of a data set, reached at once by the index of a sample.

    Philox counts in the lowest word of its counter. The index is the highest word, so no two samples share a number.
    """

    def __init__(self, seed: int, split: Split) -> None:
        self._bits = np.random.Philox(key=(seed, SPLITS.index(split)))
        self._start = self._bits.state

    def at(self, index: int) -> np.random.Generator:
        """Returns the numbers of a sample. They invalidate those that were returned before."""
        # Ten times faster than a new Philox.
        self._start["state"]["counter"][:] = (0, 0, 0, index)
        self._bits.state = self._start
        return np.random.Generator(self._bits)


def _draw(world: World, generator: np.random.Generator, split: Split) -> Attributes:
    for _ in range(_MAX_ATTEMPTS):
        attributes = _propose(world, generator.random(_DRAWS).tolist())
        if world.split_of(attributes) == split and world.is_visible(attributes):
            return attributes
    raise InvalidInputError("world", f"has no picture of the split {split!r}; hold out fewer combinations")


def _propose(world: World, draws: list[float]) -> Attributes:
    """Turns numbers in [0, 1) into attributes; the meaning of a number does not depend on the others."""
    kind, first, second, first_tint, second_tint, first_hue, second_hue, grounded, ground, style = draws[:10]
    small, centred, right, down = draws[10:]
    chances, layout = world.description.chances, world.description.layout

    first_thing = _pick(world.things, first)
    figures: tuple[Figure, ...] = (Figure(first_thing, _colour(world, first_tint, first_hue)),)
    if kind < chances.pair:
        others = [thing for thing in world.things if thing != first_thing]
        figures += (Figure(_pick(others, second), _colour(world, second_tint, second_hue)),)
    tinted = any(figure.colour != NATURAL for figure in figures)
    coloured = grounded < (chances.tinted_background if tinted else chances.natural_background)
    size: Size = "small" if len(figures) == 2 or small < chances.small else "big"
    offset = (0, 0)
    if centred >= chances.centred:
        step, max_steps = (layout.small_step, 2) if size == "small" else (layout.big_step, 1)
        across, along = (step * (int(draw * (2 * max_steps + 1)) - max_steps) for draw in (right, down))
        offset = (0 if len(figures) == 2 else across, along)
    return Attributes(
        figures=figures,
        style=_pick(world.styles, style),
        background=_pick(world.backgrounds[1:], ground) if coloured else PLAIN,
        size=size,
        offset=offset,
    )


def _colour(world: World, tint: float, hue: float) -> str:
    return _pick(world.colours[1:], hue) if tint < world.description.chances.tinted else NATURAL


def _pick(words: Sequence[str], draw: float) -> str:
    return words[int(draw * len(words))]
