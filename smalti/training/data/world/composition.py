"""Pictures of a world, composed with captions that say exactly what they show.

Each sample is a function of (world, seed, split, index) alone: a trainer composes pictures on the fly, stores nothing,
and can resume at any index. The splits share no picture:

* `train`: no held-out combination, and no picture of `validation`;
* `validation`: combinations that training sees, in pictures (style, size, position) that it does not see;
* `held_out`: at least one held-out combination of a thing in each picture.
"""

import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from smalti.errors import InvalidInputError
from smalti.training.data.world import captions
from smalti.training.data.world.attributes import SPLITS, Attributes, Split, check_split
from smalti.training.data.world.colours import ramp, to_oklab
from smalti.training.data.world.description import (
    NATURAL,
    PLAIN,
    WorldDescription,
    base_colour,
    load_description,
)
from smalti.training.data.world.grounds import draw_ground, ground_kinds
from smalti.training.data.world.layout import REFERENCE, Placement, ground_variant, lay_out
from smalti.training.data.world.proposals import propose
from smalti.training.data.world.sprites import RESOLUTIONS, Sprites, resize, turn
from smalti.training.data.world.tinting import ContrastMeter, tint, tones
from smalti.training.data.world.vocabulary import Vocabulary

_VALIDATION_SHARE = 16
"""One picture in this many, of combinations that are not held out, belongs to `validation`."""
_MAX_ATTEMPTS = 10_000
_MAX_SEARCHED = 1_000
"""Captions that are searched for each picture wanted."""
_MIN_OVERLAP_CONTRAST = 0.12
"""Smallest OKLab distance of the mean colours of a figure and of the one behind it."""

Accept = Callable[[Attributes], bool]
"""Chooses among the pictures that a split may have."""


class Drawn(NamedTuple):
    """A figure at one size, with its colour channels apart."""

    colours: UInt8[np.ndarray, "3 height width"]
    alpha: UInt8[np.ndarray, "height width"]
    tones: UInt8[np.ndarray, "height width"]
    """Position of each pixel on the ramp of a tint."""


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
        self.colours = (NATURAL, *description.colours, *description.shades)
        self.grounds = ground_kinds(description)
        """What each background is made of."""
        self.backgrounds = tuple(self.grounds)
        self.plain_backgrounds = (PLAIN, *description.backgrounds)
        self._sprites = sprites.pixels
        self._row = {word: row for row, word in enumerate(self.things)}
        self._column = {word: column for column, word in enumerate(self.styles)}
        self._thing = {thing.word: thing for thing in description.things}
        self._rgb = {**description.colours, **description.shades}
        self._ramps = {word: np.ascontiguousarray(ramp(rgb).T) for word, rgb in self._rgb.items()}
        self._drawn: dict[tuple[str, str, int], Drawn] = {}
        self._contrasts: dict[tuple[str, str], Float[np.ndarray, "colours backgrounds"]] = {}
        self._mean_colours: dict[tuple[str, str, str], Float[np.ndarray, " 3"]] = {}
        self._grounds: dict[tuple[str, int], UInt8[np.ndarray, "3 side side"]] = {}
        self.vocabulary = Vocabulary.of(description)

    @classmethod
    def load(cls, folder: Path, resolution: int = 64) -> "World":
        """Loads a world from the folder that `smalti data build` wrote.

        Raises:
            InvalidInputError: a file is missing or damaged, or the sprites are too small for the resolution.
        """
        return cls(load_description(folder / "world.json"), Sprites.load(folder / "sprites.npz"), resolution)

    def held_out_aspects(self, attributes: Attributes) -> frozenset[str]:
        """Returns what of a picture is held out, in the words of `HELD_OUT_ASPECTS`."""
        ground = self.grounds[attributes.background]
        found = set()
        for figure in attributes.figures:
            held = self._thing[figure.thing].held_out
            if base_colour(figure.colour) == held.colour:
                found.add("colour")
            if ground.colour == held.background:
                found.add("background")
            if ground.kind and ground.kind == held.kind:
                found.add("kind")
            if attributes.count > 1 and attributes.count == held.count:
                found.add("count")
            if attributes.is_pair and attributes.relation == held.relation:
                found.add("relation")
            if attributes.style == held.style:
                found.add("style")
        return frozenset(found)

    def is_held_out(self, attributes: Attributes) -> bool:
        """Returns whether a picture shows a held-out combination."""
        return bool(self.held_out_aspects(attributes))

    def split_of(self, attributes: Attributes) -> Split:
        """Returns the split that a picture belongs to."""
        if self.is_held_out(attributes):
            return "held_out"
        chosen = zlib.crc32(repr(attributes).encode()) % _VALIDATION_SHARE == 0
        return "validation" if chosen else "train"

    def is_drawn(self, thing: str, style: str) -> bool:
        """Returns whether a style draws a thing."""
        return style not in self._thing[thing].without

    def is_visible(self, attributes: Attributes) -> bool:
        """Returns whether the style draws all figures, and they stand out from the background and from each other.

        A thing in its own colours on white always stands out: "a cloud" means a cloud on white.
        """
        style, background = attributes.style, attributes.background
        if not all(self.is_drawn(figure.thing, style) for figure in attributes.figures):
            return False
        ground = self._ground_index[background]
        for figure in attributes.figures:
            if figure.colour == NATURAL and background == PLAIN:
                continue
            contrast = self._contrasts_of(figure.thing, style)[self._colour_index[figure.colour], ground]
            if contrast < self.description.smallest_contrast:
                return False
        if attributes.is_pair and attributes.relation == "in front of":
            front, behind = (self._mean_colour(each.thing, style, each.colour) for each in attributes.figures)
            return float(np.linalg.norm(front - behind)) >= _MIN_OVERLAP_CONTRAST
        return True

    def sprite(
        self, thing: str, style: str, side: int, colour: str = NATURAL
    ) -> UInt8[np.ndarray, "side side 4"]:
        """Returns a thing as a picture with straight alpha, at any size in pixels."""
        drawn = self._coloured(self._at_size(thing, style, side), colour)
        return np.concatenate([drawn.colours, drawn.alpha[None]]).transpose(1, 2, 0)

    def ground(self, background: str, variant: int = 0) -> UInt8[np.ndarray, "3 side side"]:
        """Returns the picture of a background, colour channels first, from a cache."""
        key = (background, ground_variant(variant) if self.grounds[background].kind else 0)
        if key not in self._grounds:
            drawn = draw_ground(self.grounds[background], self.resolution, key[1])
            self._grounds[key] = np.ascontiguousarray(drawn.transpose(2, 0, 1))
        return self._grounds[key]

    def figure(self, thing: str, style: str, colour: str, placement: Placement) -> Drawn:
        """Returns a figure as it is placed: in its size and colour, mirrored and turned."""
        drawn = self._at_size(thing, style, max(1, round(placement.side * self.resolution / REFERENCE)))
        if placement.mirrored and thing not in self.vocabulary.never_mirrored:
            drawn = Drawn(*(each[..., ::-1] for each in drawn))
        if placement.turn == 180:
            drawn = Drawn(*(each[..., ::-1, ::-1] for each in drawn))
        elif placement.turn:
            channels = drawn.colours if colour == NATURAL else drawn.tones[None]
            turned = turn(np.concatenate([channels, drawn.alpha[None]]), placement.turn)
            drawn = Drawn(turned[:-1], turned[-1], turned[0])
        return self._coloured(drawn, colour)

    def _coloured(self, drawn: Drawn, colour: str) -> Drawn:
        return drawn if colour == NATURAL else drawn._replace(colours=self._ramps[colour][:, drawn.tones])

    def _at_size(self, thing: str, style: str, side: int) -> Drawn:
        key = (thing, style, side)
        if key not in self._drawn:
            sprite = resize(self._sprites[self._row[thing], self._column[style]], side, side)
            planes = np.ascontiguousarray(sprite.transpose(2, 0, 1))
            self._drawn[key] = Drawn(planes[:3], planes[3], tones(sprite))
        return self._drawn[key]

    @cached_property
    def _colour_index(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.colours)}

    @cached_property
    def _ground_index(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.backgrounds)}

    def _contrasts_of(self, thing: str, style: str) -> Float[np.ndarray, "colours backgrounds"]:
        key = (thing, style)
        if key not in self._contrasts:
            self._contrasts[key] = self._meter(self._sprites[self._row[thing], self._column[style]])
        return self._contrasts[key]

    @cached_property
    def _meter(self) -> ContrastMeter:
        return ContrastMeter(list(self._rgb.values()), [ground.tones for ground in self.grounds.values()])

    def _mean_colour(self, thing: str, style: str, colour: str) -> Float[np.ndarray, " 3"]:
        key = (thing, style, colour)
        if key not in self._mean_colours:
            sprite = resize(
                self._sprites[self._row[thing], self._column[style]], REFERENCE // 4, REFERENCE // 4
            )
            weight = sprite[..., 3].astype(float)
            coloured = sprite if colour == NATURAL else tint(sprite, self._rgb[colour])
            lab = to_oklab(coloured[..., :3])
            self._mean_colours[key] = (lab * weight[..., None]).sum((0, 1)) / weight.sum()
        return self._mean_colours[key]


def draw_attributes(world: World, seed: int, index: int, split: Split = "train") -> Attributes:
    """Draws the attributes of a picture; a function of the arguments alone."""
    return _draw(world, _Stream(seed, split).at(index), split)


def compose(world: World, attributes: Attributes) -> UInt8[np.ndarray, "size size 3"]:
    """Composes a picture.

    Raises:
        KeyError: the world lacks the thing, style, colour or background.
    """
    picture = world.ground(attributes.background, attributes.variant).copy()
    scale = world.resolution / REFERENCE
    for placement in lay_out(attributes, world.description.layout):
        figure = attributes.figures[placement.figure]
        drawn = world.figure(figure.thing, attributes.style, figure.colour, placement)
        height, width = drawn.alpha.shape
        # Half pixels are rounded up everywhere, so that mirrored layouts stay symmetric.
        top = int(placement.down * scale - height / 2 + 0.5)
        left = int(placement.right * scale - width / 2 + 0.5)
        rows, columns = _overlap(top, height, world.resolution), _overlap(left, width, world.resolution)
        part = picture[:, rows[0], columns[0]]
        alpha = drawn.alpha[rows[1], columns[1]].astype(np.uint16)
        # (x + 128) / 255 in 16 bits without a division; exact for all x up to 255 * 255.
        mixed = part * (255 - alpha)
        mixed += drawn.colours[:, rows[1], columns[1]] * alpha
        mixed += 128
        mixed += mixed >> 8
        mixed >>= 8
        part[...] = mixed
    return picture.transpose(1, 2, 0)


def caption(attributes: Attributes, generator: np.random.Generator, world: World) -> str:
    """Writes a caption in one of many wordings; every word is true."""
    return captions.write(attributes, generator, world.vocabulary)


class CompositionDataset:
    """An endless data set of composed pictures, addressed by index.

    Args:
        world: the world, at the resolution of the pictures.
        seed: seed of the samples.
        split: name of the split.
        accept: chooses among the pictures of the split; None for all of them.

    Raises:
        InvalidInputError: there is no such split.
    """

    def __init__(
        self, world: World, seed: int = 0, split: str = "train", accept: Accept | None = None
    ) -> None:
        self.world = world
        self.seed = seed
        self.split = check_split(split)
        self._accept = accept

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
            attributes, text = self._describe(stream.at(index))
            pixels[row] = compose(self.world, attributes)
            texts.append(text)
            drawn.append(attributes)
        return pixels, texts, drawn

    def find(
        self, text: str, start: int, count: int
    ) -> tuple[list[UInt8[np.ndarray, "height width 3"]], list[str]]:
        """Returns the first samples from `start` on whose caption contains a text: pictures and captions.

        Raises:
            InvalidInputError: there are too few of them.
        """
        pictures: list[UInt8[np.ndarray, "height width 3"]] = []
        texts: list[str] = []
        searched = _MAX_SEARCHED * count
        stream = _Stream(self.seed, self.split)
        for index in range(start, start + searched):
            attributes, said = self._describe(stream.at(index))
            if text in said:
                pictures.append(compose(self.world, attributes))
                texts.append(said)
            if len(texts) == count:
                return pictures, texts
        raise InvalidInputError(
            "containing", f"only {len(texts)} of {searched:,} captions contain {text!r}, not {count}"
        )

    def _describe(self, generator: np.random.Generator) -> tuple[Attributes, str]:
        """Returns the attributes and the caption of the sample with these random numbers."""
        attributes = _draw(self.world, generator, self.split, self._accept)
        return attributes, caption(attributes, generator, self.world)


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


def _draw(
    world: World, generator: np.random.Generator, split: Split, accept: Accept | None = None
) -> Attributes:
    for _ in range(_MAX_ATTEMPTS):
        attributes = propose(world.vocabulary, generator)
        if (
            (accept is None or accept(attributes))
            and world.split_of(attributes) == split
            and world.is_visible(attributes)
        ):
            return attributes
    raise InvalidInputError("world", f"has no picture of the split {split!r}; hold out fewer combinations")


def _overlap(start: int, length: int, side: int) -> tuple[slice, slice]:
    """Returns the part of a picture that a figure covers, and the part of the figure that is inside."""
    first, last = max(start, 0), min(start + length, side)
    return slice(first, last), slice(first - start, last - start)
