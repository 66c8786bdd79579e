"""What a judge learns from: composed pictures and damaged ones, plain and as they come back from their tokens.

A judge looks at one figure at a time. Of a picture of two things it sees one half, widened to a square with its own
background, which then is a picture of one small thing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from smalti.engines.decoder import DecoderEngine
from smalti.models.vqgan import VQGAN
from smalti.training.data.world.attributes import Attributes, Figure, Split
from smalti.training.data.world.composition import CompositionDataset, World, compose
from smalti.training.judge.damage import damage, figure, ground_of, warp
from smalti.training.loop.step import Batch

Place = Literal["whole", "left", "right"]
PLACES: tuple[Place, ...] = ("whole", "left", "right")

_REFERENCE = 64
_MAX_SHIFT = 4
"""How far a picture is moved, in pixels of a picture of 64: half a tile, so that tiles cut through it anywhere."""
_BENT = 0.3
_MAX_BEND = 1.5
"""Some whole things are bent by so many pixels of a picture of 64: generated outlines are not exact either."""
_WRONG_LAYOUT = 0.06
"""The share of pictures with two things that shall count as one thing, or one thing cut through."""
_REPLACED = 0.1
"""The share of the pictures with damage done to the tokens instead of the pixels."""
_REPLACED_TOKENS = (0.3, 0.7)
_BLEMISHED = 0.2
"""The share of the whole things in which one token is wrong; they still count as whole."""
_VQGAN_BATCH = 64


@dataclass(frozen=True)
class Samples:
    """Pictures of single figures, with what a judge should say of them."""

    pixels: UInt8[np.ndarray, "samples side side 3"]
    things: Int[np.ndarray, " samples"]
    """The row of the thing; the number of things where it is damaged or no single thing is there."""
    colours: Bool[np.ndarray, "samples colours"]
    """The colours that are right; all, where the picture has no one colour."""
    backgrounds: Int[np.ndarray, " samples"]
    meant: Int[np.ndarray, " samples"]
    """The row of the thing that it is, or was before it was damaged; the number of things where there is no one."""
    small: Bool[np.ndarray, " samples"]
    """Whether the figure is a small one, as each of two things is."""

    def take(self, rows: Int[np.ndarray, " count"] | Bool[np.ndarray, " samples"]) -> "Samples":
        """Returns some of the samples."""
        return Samples(**{name: values[rows] for name, values in vars(self).items()})

    def batch(self) -> Batch:
        """Returns the arrays that the loss reads."""
        return {
            "pixels": self.pixels,
            "things": self.things,
            "colours": self.colours,
            "backgrounds": self.backgrounds,
        }


@dataclass(frozen=True)
class _Sample:
    """One picture, whole as it is composed, and which figure of it is meant."""

    picture: UInt8[np.ndarray, "side side 3"]
    place: Place
    whole: bool
    figure: Figure | None
    """None where the picture has no one figure."""
    background: str
    small: bool


class SampleMaker:
    """Makes the samples of a world; each is a function of seed, split and index alone."""

    def __init__(
        self, world: World, acceptable: Bool[np.ndarray, "things colours colours"], damaged: float = 0.0
    ) -> None:
        """Keeps what samples are made of.

        Args:
            world: what is drawn, at its resolution.
            acceptable: the colours that are right for a thing's colour; see `smalti.training.data.world.lookalikes`.
            damaged: the share of pictures that are damaged.
        """
        self.world = world
        self._acceptable = acceptable
        self._damaged = damaged
        self._scale = world.resolution // _REFERENCE

    def fresh(self, seed: int, indices: Sequence[int], side: int, split: Split = "train") -> Samples:
        """Makes samples whose pictures come as they are composed, scaled to a side."""
        made = self._make(seed, indices, split, exact=False)
        return self._views(made, np.stack([sample.picture for sample in made]), side)

    def exact(
        self,
        indices: Sequence[int],
        side: int,
        split: Split,
        vqgan: VQGAN | None = None,
        damaged: bool = False,
    ) -> Samples:
        """Makes samples to measure a judge by: composed pictures as they are, or as they come back from their tokens.

        Args:
            indices: which pictures of the split, of the seed that held-out pictures have.
            side: of the pictures.
            split: where the attributes come from.
            vqgan: turns the pictures into tokens and back.
            damaged: whether all of them are damaged; else none is.
        """
        maker = SampleMaker(self.world, self._acceptable, float(damaged))
        made = maker._make(0, indices, split, exact=True)
        pixels = np.stack([sample.picture for sample in made])
        return self._views(made, pixels if vqgan is None else round_trip(vqgan, pixels), side)

    def round_trips(self, seed: int, indices: Sequence[int], side: int, vqgan: VQGAN) -> Samples:
        """Makes training samples whose pictures come back from their tokens, some of which are wrong."""
        made = self._make(seed, indices, "train", exact=False)
        pixels = np.stack([sample.picture for sample in made])
        engine = DecoderEngine(vqgan, batch_size=_VQGAN_BATCH)
        codes = engine.encode(pixels)
        generator = _numbers(seed, 3, indices[0])
        for row, sample in enumerate(made):
            if not sample.whole:
                continue
            visible = np.flatnonzero(_visible_tokens(sample.picture, codes.shape[1]))
            draw = generator.random()
            if draw < _REPLACED and len(visible):
                count = max(1, round(len(visible) * generator.uniform(*_REPLACED_TOKENS)))
                chosen = generator.choice(visible, count, replace=False)
                # From another picture at the same place, or any code.
                other = codes[generator.integers(len(codes)), chosen]
                anything = generator.integers(0, vqgan.config.n_embed, count)
                codes[row, chosen] = other if generator.random() < 0.5 else anything
                made[row] = replace(sample, whole=False)
            elif draw > 1 - _BLEMISHED:
                place = generator.integers(codes.shape[1])
                codes[row, place] = codes[generator.integers(len(codes)), place]
        return self._views(made, engine.decode(codes), side)

    def _make(self, seed: int, indices: Sequence[int], split: Split, exact: bool) -> list[_Sample]:
        pictures, _, drawn = CompositionDataset(self.world, seed, split).samples(indices)
        return [
            self._one(picture, attributes, _numbers(seed, 2, index), exact)
            for picture, attributes, index in zip(pictures, drawn, indices, strict=True)
        ]

    def _one(
        self,
        picture: UInt8[np.ndarray, "side side 3"],
        attributes: Attributes,
        generator: np.random.Generator,
        exact: bool,
    ) -> _Sample:
        pair = len(attributes.figures) == 2
        which = int(generator.integers(len(attributes.figures)))
        place: Place = PLACES[1 + which] if pair else "whole"
        meant: Figure | None = attributes.figures[which]
        whole = generator.random() >= self._damaged
        if not exact and generator.random() < _WRONG_LAYOUT:
            whole = False
            # Two things at once have no one colour; a big thing that is cut through keeps its own.
            place, meant = ("whole", None) if pair else (PLACES[1 + int(generator.integers(2))], meant)
            if not pair and attributes.size == "small":
                picture = compose(self.world, replace(attributes, size="big", offset=(0, 0)))
        elif not whole:
            others = [thing for thing in self.world.things if thing != attributes.figures[which].thing]
            figures = list(attributes.figures)
            figures[which] = Figure(others[generator.integers(len(others))], figures[which].colour)
            other = compose(self.world, replace(attributes, figures=tuple(figures)))
            picture = _paste(picture, damage(view(picture, place), view(other, place), generator), place)
        elif not exact and generator.random() < _BENT:
            picture = warp(picture, generator, generator.uniform(0, _MAX_BEND) * self._scale)
        if not exact:
            most = _MAX_SHIFT * self._scale
            down, right = generator.integers(-most, most + 1, 2)
            # Two things leave no room to the sides.
            picture = _shift(picture, int(down), int(right) if len(attributes.figures) == 1 else 0)
        return _Sample(picture, place, whole, meant, attributes.background, attributes.size == "small")

    def _views(
        self, made: Sequence[_Sample], pixels: UInt8[np.ndarray, "samples height width 3"], side: int
    ) -> Samples:
        world = self.world
        views = [view(picture, sample.place) for picture, sample in zip(pixels, made, strict=True)]
        none = len(world.things)
        meant = [world.things.index(sample.figure.thing) if sample.figure else none for sample in made]
        things = [thing if sample.whole else none for thing, sample in zip(meant, made, strict=True)]
        return Samples(
            pixels=scaled(np.stack(views), side),
            things=np.array(things, np.int32),
            colours=np.stack([self._right_colours(sample.figure) for sample in made]),
            backgrounds=np.array([world.backgrounds.index(sample.background) for sample in made], np.int32),
            meant=np.array(meant, np.int32),
            small=np.array([sample.small for sample in made]),
        )

    def _right_colours(self, meant: Figure | None) -> Bool[np.ndarray, " colours"]:
        if meant is None:
            return np.ones(len(self.world.colours), bool)
        return self._acceptable[self.world.things.index(meant.thing), self.world.colours.index(meant.colour)]


def held_out_samples(
    maker: SampleMaker, token_maker: SampleMaker, vqgan: VQGAN, side: int, count: int
) -> dict[str, Samples]:
    """Makes what a judge is measured by: held-out pictures as they are, from their tokens, and damaged ones."""
    indices = range(count)
    return {
        "plain": maker.exact(indices, side, "held_out"),
        "tokens": token_maker.exact(indices, side, "held_out", vqgan),
        "damaged": token_maker.exact(indices, side, "held_out", vqgan, damaged=True),
    }


def view(picture: UInt8[np.ndarray, "side side 3"], place: Place) -> UInt8[np.ndarray, "side side 3"]:
    """Returns the picture of one figure: the whole, or one half, widened to a square by its own background."""
    if place == "whole":
        return picture
    half = len(picture) // 2
    columns = picture[:, :half] if place == "left" else picture[:, half:]
    widened = np.broadcast_to(ground_of(columns), picture.shape).copy()
    widened[:, half // 2 : half // 2 + half] = columns
    return widened


def round_trip(
    vqgan: VQGAN, pictures: UInt8[np.ndarray, "pictures side side 3"]
) -> UInt8[np.ndarray, "pictures side side 3"]:
    """Returns pictures as they come back from their tokens."""
    engine = DecoderEngine(vqgan, batch_size=_VQGAN_BATCH)
    return engine.decode(engine.encode(pictures))


def scaled(
    pictures: UInt8[np.ndarray, "pictures height width 3"], side: int
) -> UInt8[np.ndarray, "pictures side side 3"]:
    """Returns pictures with another side."""
    if pictures.shape[1:3] == (side, side):
        return pictures
    images = [Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS) for picture in pictures]
    return np.stack([np.asarray(image) for image in images])


def _paste(
    picture: UInt8[np.ndarray, "side side 3"], changed: UInt8[np.ndarray, "side side 3"], place: Place
) -> UInt8[np.ndarray, "side side 3"]:
    """Puts a view back where it was taken from; what a half was widened by is dropped."""
    if place == "whole":
        return changed
    half = len(picture) // 2
    middle = changed[:, half // 2 : half // 2 + half]
    result = picture.copy()
    columns = slice(half) if place == "left" else slice(half, None)
    result[:, columns] = middle
    return result


def _shift(
    picture: UInt8[np.ndarray, "side side 3"], down: int, right: int
) -> UInt8[np.ndarray, "side side 3"]:
    """Moves a picture over its background."""
    side = len(picture)
    moved = np.broadcast_to(ground_of(picture), picture.shape).copy()

    def span(step: int) -> tuple[slice, slice]:
        return slice(max(step, 0), side + min(step, 0)), slice(max(-step, 0), side + min(-step, 0))

    (to_rows, rows), (to_columns, columns) = span(down), span(right)
    moved[to_rows, to_columns] = picture[rows, columns]
    return moved


def _visible_tokens(picture: UInt8[np.ndarray, "side side 3"], tokens: int) -> Bool[np.ndarray, " tokens"]:
    """Marks the tokens whose tile shows more than background."""
    tiles = round(tokens**0.5)
    size = len(picture) // tiles
    return (figure(picture).reshape(tiles, size, tiles, size).mean((1, 3)) > 0.1).ravel()


def _numbers(seed: int, stream: int, index: int) -> np.random.Generator:
    """Returns the random numbers of an index, apart from those that drew what is on the picture."""
    return np.random.Generator(np.random.Philox(key=(seed, 16 + stream), counter=(0, 0, 0, index)))
