"""Samples from which a judge learns: composed and damaged pictures, plain and reconstructed from their tokens.

A judge looks at one figure at a time. Of a picture of two things it sees one half, widened to a square by the
background, which is then a picture of one small thing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from smalti.engines.decoder import DecoderEngine
from smalti.models.vqgan import VQGAN
from smalti.training.batches.batch import Batch
from smalti.training.batches.random_numbers import generator_at
from smalti.training.data.world.attributes import Attributes, Figure, Split
from smalti.training.data.world.composition import CompositionDataset, World, compose
from smalti.training.data.world.layout import REFERENCE
from smalti.training.judge.damage import damage, figure, ground_of, warp

Region = Literal["whole", "left", "right"]
"""Part of a picture that a judge looks at."""
REGIONS: tuple[Region, ...] = get_args(Region)

_MAX_SHIFT = 4
"""Maximal shift of a picture, in pixels of a picture of 64: half a tile, so that tiles cut through it anywhere."""
_BENT = 0.3
"""Share of whole things that are bent, since generated outlines are not exact either."""
_MAX_BEND = 1.5
"""Maximal shift of a bent outline, in pixels of a picture of 64."""
_WRONG_LAYOUT = 0.06
"""Share of pictures with a wrong layout: two things where one is asked for, or one thing cut in half."""
_REPLACED = 0.1
"""Share of the reconstructed pictures that are damaged in their tokens instead of their pixels."""
_REPLACED_TOKENS = (0.3, 0.7)
"""Range of the share of visible tokens that are replaced in such a picture."""
_BLEMISHED = 0.2
"""Share of whole things with one wrong token; they still count as whole."""
_VQGAN_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Pictures of single figures, with what a judge should say about them."""

    pixels: UInt8[np.ndarray, "samples side side 3"]
    things: Int[np.ndarray, " samples"]
    """Index of the thing, or the number of things if it is damaged or there is no single thing."""
    colours: Bool[np.ndarray, "samples colours"]
    """Mask of the right colours; all of them if the picture has no single colour."""
    backgrounds: Int[np.ndarray, " samples"]
    meant: Int[np.ndarray, " samples"]
    """Index of the thing, before any damage; the number of things if there is no single thing."""
    small: Bool[np.ndarray, " samples"]
    """Whether the figure is small, as each of two things is."""

    def take(self, rows: Int[np.ndarray, " count"] | Bool[np.ndarray, " samples"]) -> "Samples":
        """Returns the given samples."""
        return Samples(**{name: values[rows] for name, values in vars(self).items()})

    def batch(self) -> Batch:
        """Returns the arrays that the loss reads."""
        return {
            "pixels": self.pixels,
            "things": self.things,
            "colours": self.colours,
            "backgrounds": self.backgrounds,
        }


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """One picture, and the figure in it that is judged."""

    picture: UInt8[np.ndarray, "side side 3"]
    region: Region
    whole: bool
    figure: Figure | None
    """The figure that is judged; None if the region shows two."""
    background: str
    small: bool


class SampleMaker:
    """Makes samples of a world; each is a function of seed, split and index alone."""

    def __init__(
        self, world: World, acceptable: Bool[np.ndarray, "things colours colours"], damaged: float = 0.0
    ) -> None:
        """Makes the maker.

        Args:
            world: the world, at the resolution of the pictures.
            acceptable: colours that count as right for each colour of each thing, from `acceptable_colours`.
            damaged: share of pictures that are damaged.
        """
        self.world = world
        self._acceptable = acceptable
        self._damaged = damaged
        self._scale = world.resolution / REFERENCE

    def fresh(self, seed: int, indices: Sequence[int], side: int, split: Split = "train") -> Samples:
        """Makes training samples of composed pictures, scaled to a side."""
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
        """Makes samples to measure a judge with: composed pictures, without shifts and bends.

        Args:
            indices: indices of the pictures in the split, with the seed of held-out pictures.
            side: side of the pictures.
            split: split of the pictures.
            vqgan: reconstructs the pictures from their tokens; None to use them as they are.
            damaged: whether all pictures are damaged; otherwise none is.
        """
        maker = SampleMaker(self.world, self._acceptable, float(damaged))
        made = maker._make(0, indices, split, exact=True)
        pixels = np.stack([sample.picture for sample in made])
        return self._views(made, pixels if vqgan is None else round_trip(vqgan, pixels), side)

    def round_trips(self, seed: int, indices: Sequence[int], side: int, vqgan: VQGAN) -> Samples:
        """Makes training samples of pictures that are reconstructed from their tokens, some of which are wrong."""
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
                # By those of another picture at the same positions, or by random ones.
                other = codes[generator.integers(len(codes)), chosen]
                random = generator.integers(0, vqgan.config.n_embed, count)
                codes[row, chosen] = other if generator.random() < 0.5 else random
                made[row] = replace(sample, whole=False)
            elif draw > 1 - _BLEMISHED:
                position = generator.integers(codes.shape[1])
                codes[row, position] = codes[generator.integers(len(codes)), position]
        return self._views(made, engine.decode(codes), side)

    def _make(self, seed: int, indices: Sequence[int], split: Split, exact: bool) -> list[_Sample]:
        pictures, _, drawn = CompositionDataset(self.world, seed, split, self.can_be_judged).samples(indices)
        return [
            self._one(picture, attributes, _numbers(seed, 2, index), exact)
            for picture, attributes, index in zip(pictures, drawn, indices, strict=True)
        ]

    def can_be_judged(self, attributes: Attributes) -> bool:
        """Returns whether a picture shows one upright thing, or two side by side, on a plain background."""
        return (
            attributes.count == 1
            and attributes.relation == "beside"
            and attributes.pose == "upright"
            and attributes.size in ("usual", "small")
            and attributes.place == "middle"
            and attributes.background in self.world.plain_backgrounds
        )

    def _one(
        self,
        picture: UInt8[np.ndarray, "side side 3"],
        attributes: Attributes,
        generator: np.random.Generator,
        exact: bool,
    ) -> _Sample:
        pair = len(attributes.figures) == 2
        which = int(generator.integers(len(attributes.figures)))
        region: Region = REGIONS[1 + which] if pair else "whole"
        meant: Figure | None = attributes.figures[which]
        whole = generator.random() >= self._damaged
        if not exact and generator.random() < _WRONG_LAYOUT:
            whole = False
            # Two things have no single colour; a big thing that is cut in half keeps its colour.
            region, meant = ("whole", None) if pair else (REGIONS[1 + int(generator.integers(2))], meant)
            if not pair and attributes.size == "small":
                picture = compose(self.world, replace(attributes, size="usual", offset=(0, 0)))
        elif not whole:
            others = [
                thing
                for thing in self.world.things
                if thing != attributes.figures[which].thing and self.world.is_drawn(thing, attributes.style)
            ]
            figures = list(attributes.figures)
            figures[which] = Figure(others[generator.integers(len(others))], figures[which].colour)
            other = compose(self.world, replace(attributes, figures=tuple(figures)))
            damaged = damage(view(picture, region), view(other, region), generator)
            picture = _paste(picture, damaged, region)
        elif not exact and generator.random() < _BENT:
            picture = warp(picture, generator, generator.uniform(0, _MAX_BEND) * self._scale)
        if not exact:
            reach = round(_MAX_SHIFT * self._scale)
            down, right = generator.integers(-reach, reach + 1, 2)
            # Two things leave no room on the sides.
            picture = _shift(picture, int(down), int(right) if len(attributes.figures) == 1 else 0)
        return _Sample(
            picture=picture,
            region=region,
            whole=whole,
            figure=meant,
            background=attributes.background,
            small=attributes.size == "small",
        )

    def _views(
        self, made: Sequence[_Sample], pixels: UInt8[np.ndarray, "samples height width 3"], side: int
    ) -> Samples:
        world = self.world
        views = [view(picture, sample.region) for picture, sample in zip(pixels, made, strict=True)]
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
    """Makes the held-out samples that measure a judge: "plain", reconstructed ("tokens"), and "damaged"."""
    indices = range(count)
    return {
        "plain": maker.exact(indices, side, "held_out"),
        "tokens": token_maker.exact(indices, side, "held_out", vqgan),
        "damaged": token_maker.exact(indices, side, "held_out", vqgan, damaged=True),
    }


def view(picture: UInt8[np.ndarray, "side side 3"], region: Region) -> UInt8[np.ndarray, "side side 3"]:
    """Returns the picture of one figure: the whole picture, or one half widened to a square by its background."""
    if region == "whole":
        return picture
    half = len(picture) // 2
    columns = picture[:, :half] if region == "left" else picture[:, half:]
    widened = np.broadcast_to(ground_of(columns), picture.shape).copy()
    widened[:, half // 2 : half // 2 + half] = columns
    return widened


def round_trip(
    vqgan: VQGAN, pictures: UInt8[np.ndarray, "pictures side side 3"]
) -> UInt8[np.ndarray, "pictures side side 3"]:
    """Returns pictures reconstructed from their tokens."""
    engine = DecoderEngine(vqgan, batch_size=_VQGAN_BATCH)
    return engine.decode(engine.encode(pictures))


def scaled(
    pictures: UInt8[np.ndarray, "pictures height width 3"], side: int
) -> UInt8[np.ndarray, "pictures side side 3"]:
    """Scales pictures to another side."""
    if pictures.shape[1:3] == (side, side):
        return pictures
    images = [Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS) for picture in pictures]
    return np.stack([np.asarray(image) for image in images])


def _paste(
    picture: UInt8[np.ndarray, "side side 3"], changed: UInt8[np.ndarray, "side side 3"], region: Region
) -> UInt8[np.ndarray, "side side 3"]:
    """Returns a picture with a changed view put back; the widening of a half is cut off."""
    if region == "whole":
        return changed
    half = len(picture) // 2
    middle = changed[:, half // 2 : half // 2 + half]
    result = picture.copy()
    columns = slice(half) if region == "left" else slice(half, None)
    result[:, columns] = middle
    return result


def _shift(
    picture: UInt8[np.ndarray, "side side 3"], down: int, right: int
) -> UInt8[np.ndarray, "side side 3"]:
    """Shifts a picture and fills up with its background."""
    side = len(picture)
    moved = np.broadcast_to(ground_of(picture), picture.shape).copy()

    def span(step: int) -> tuple[slice, slice]:
        return slice(max(step, 0), side + min(step, 0)), slice(max(-step, 0), side + min(-step, 0))

    (to_rows, rows), (to_columns, columns) = span(down), span(right)
    moved[to_rows, to_columns] = picture[rows, columns]
    return moved


def _visible_tokens(picture: UInt8[np.ndarray, "side side 3"], tokens: int) -> Bool[np.ndarray, " tokens"]:
    """Returns a mask of the tokens whose tiles show more than background."""
    tiles = round(tokens**0.5)
    size = len(picture) // tiles
    return (figure(picture).reshape(tiles, size, tiles, size).mean((1, 3)) > 0.1).ravel()


def _numbers(seed: int, stream: int, index: int) -> np.random.Generator:
    """Returns random numbers that are independent of those that drew the attributes of the picture."""
    return generator_at(seed, 16 + stream, index)
