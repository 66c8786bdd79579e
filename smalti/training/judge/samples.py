"""Samples from which a judge learns: composed and damaged pictures, plain and reconstructed from their tokens.

A judge looks at one figure at a time. Of a picture of two things it sees the part with one of them, widened to a square
by the background. Of the whole picture it says how many figures there are and how they stand.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from smalti.engines.decoder import DecoderEngine
from smalti.models.vqgan import VQGAN
from smalti.training.batches.batch import Batch
from smalti.training.batches.random_numbers import generator_at
from smalti.training.data.world.attributes import Attributes, Figure, Split
from smalti.training.data.world.composition import CompositionDataset, World, compose
from smalti.training.data.world.description import RELATIONS, SIZES
from smalti.training.data.world.layout import REFERENCE
from smalti.training.judge.damage import damage, figure, warp
from smalti.training.judge.views import PAIR_REGIONS, Region, paste, view

_MAX_SHIFT = 4
"""Maximal shift of a picture, in pixels of a picture of 64: half a tile, so that tiles cut through it anywhere."""
_BENT = 0.3
"""Share of whole things that are bent, since generated outlines are not exact either."""
_MAX_BEND = 1.5
"""Maximal shift of a bent outline, in pixels of a picture of 64."""
_WRONG_LAYOUT = 0.06
"""Share of pictures of one thing that are cut in half."""
_WHOLE_PAIR = 0.3
"""Share of pictures of two things that are shown whole, for the relation; they show no single thing."""
_REPLACED = 0.1
"""Share of the reconstructed pictures that are damaged in their tokens instead of their pixels."""
_REPLACED_TOKENS = (0.3, 0.7)
"""Range of the share of visible tokens that are replaced in such a picture."""
_BLEMISHED = 0.2
"""Share of whole things with one wrong token; they still count as whole."""
_VQGAN_BATCH = 64
_HALVES: tuple[Region, ...] = ("left", "right", "top", "bottom")


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Pictures, and what a judge should say about them; -1 where it need not say anything."""

    pixels: UInt8[np.ndarray, "samples side side 3"]
    things: Int[np.ndarray, " samples"]
    """Index of the thing, or the number of things if it is damaged or there is no single thing."""
    colours: Bool[np.ndarray, "samples colours"]
    """Mask of the right colours; all of them if the picture has no single colour."""
    backgrounds: Int[np.ndarray, " samples"]
    styles: Int[np.ndarray, " samples"]
    counts: Int[np.ndarray, " samples"]
    """Number of copies of a single thing, less one."""
    relations: Int[np.ndarray, " samples"]
    """Index in `RELATIONS` of how two things stand, or the number of relations for a single thing and its copies."""
    meant: Int[np.ndarray, " samples"]
    """Index of the thing, before any damage; -1 if there is no single thing."""
    sizes: Int[np.ndarray, " samples"]
    """Index in `SIZES`; each of two things and of several copies counts as small."""

    def take(self, rows: Int[np.ndarray, " count"] | Bool[np.ndarray, " samples"]) -> "Samples":
        """Returns the given samples."""
        return Samples(**{name: values[rows] for name, values in vars(self).items()})

    def batch(self) -> Batch:
        """Returns the arrays that the loss reads."""
        return {name: values for name, values in vars(self).items() if name not in ("meant", "sizes")}


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """One picture, and the figure in it that is judged."""

    picture: UInt8[np.ndarray, "side side 3"]
    attributes: Attributes
    region: Region
    whole: bool
    figure: Figure | None
    """The figure that is judged; None if the region shows two that are alike in size."""


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
            visible = np.flatnonzero(
                _visible_tokens(sample.picture, self._ground(sample.attributes), codes.shape[1])
            )
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
        which = int(generator.integers(len(attributes.figures)))
        region: Region = PAIR_REGIONS[attributes.relation][which] if attributes.is_pair else "whole"
        meant: Figure | None = attributes.figures[which]
        whole = generator.random() >= self._damaged
        ground = self._ground(attributes)
        odd = generator.random()
        if attributes.is_pair and attributes.relation != "in front of" and odd < _WHOLE_PAIR:
            region, meant, whole = "whole", None, False
        elif not exact and not attributes.is_pair and attributes.count == 1 and odd < _WRONG_LAYOUT:
            whole = False
            region = _HALVES[int(generator.integers(len(_HALVES)))]
            attributes = replace(attributes, size="usual", place="middle", offset=(0, 0))
            picture = compose(self.world, attributes)
        elif not whole:
            other = compose(self.world, self._with_another(attributes, which, generator))
            damaged = damage(
                view(picture, region),
                view(other, region, picture),
                view(ground, region, picture),
                generator,
            )
            picture = paste(picture, damaged, region)
        elif not exact and generator.random() < _BENT:
            picture = warp(picture, generator, generator.uniform(0, _MAX_BEND) * self._scale)
        if not exact:
            down, right = (
                int(generator.integers(-reach, reach + 1)) for reach in _room(attributes, self._scale)
            )
            picture = _shift(picture, ground, down, right)
        return _Sample(picture=picture, attributes=attributes, region=region, whole=whole, figure=meant)

    def _with_another(self, attributes: Attributes, which: int, generator: np.random.Generator) -> Attributes:
        """Returns the attributes with another thing, which the style draws, in place of one of the figures."""
        others = [
            thing
            for thing in self.world.things
            if thing != attributes.figures[which].thing and self.world.is_drawn(thing, attributes.style)
        ]
        figures = list(attributes.figures)
        figures[which] = Figure(others[generator.integers(len(others))], figures[which].colour)
        return replace(attributes, figures=tuple(figures))

    def _ground(self, attributes: Attributes) -> UInt8[np.ndarray, "side side 3"]:
        return self.world.ground(attributes.background, attributes.variant).transpose(1, 2, 0)

    def _views(
        self, made: Sequence[_Sample], pixels: UInt8[np.ndarray, "samples height width 3"], side: int
    ) -> Samples:
        world = self.world
        views = [view(picture, sample.region) for picture, sample in zip(pixels, made, strict=True)]
        none = len(world.things)
        meant = [world.things.index(sample.figure.thing) if sample.figure else -1 for sample in made]
        things = [thing if sample.whole else none for thing, sample in zip(meant, made, strict=True)]
        drawn = [sample.attributes for sample in made]

        def integers(values: Iterable[int]) -> Int[np.ndarray, " samples"]:
            return np.fromiter(values, np.int32, len(made))

        return Samples(
            pixels=scaled(np.stack(views), side),
            things=integers(things),
            colours=np.stack([self._right_colours(sample.figure) for sample in made]),
            backgrounds=integers(world.backgrounds.index(each.background) for each in drawn),
            styles=integers(
                world.styles.index(sample.attributes.style) if sample.whole else -1 for sample in made
            ),
            counts=integers(_count_of(sample) for sample in made),
            relations=integers(_relation_of(sample) for sample in made),
            meant=integers(meant),
            sizes=integers(SIZES.index("small" if each.count > 1 else each.size) for each in drawn),
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


def _count_of(sample: _Sample) -> int:
    is_told = sample.whole and sample.region == "whole" and not sample.attributes.is_pair
    return sample.attributes.count - 1 if is_told else -1


def _relation_of(sample: _Sample) -> int:
    if sample.region != "whole":
        return -1
    if sample.attributes.is_pair:
        return RELATIONS.index(sample.attributes.relation)
    return len(RELATIONS) if sample.whole else -1


def _room(attributes: Attributes, scale: float) -> tuple[int, int]:
    """Returns how far a picture may be shifted up or down, and to the sides, so that no figure leaves its region."""
    reach = round(_MAX_SHIFT * scale)
    if attributes.is_pair:
        rooms = {"beside": (reach, 0), "above": (0, reach), "in front of": (0, 0)}
        return rooms[attributes.relation]
    free = attributes.count == 1 and attributes.place == "middle" and attributes.size != "big"
    return (reach, reach) if free else (0, 0)


def _shift(
    picture: UInt8[np.ndarray, "side side 3"], ground: UInt8[np.ndarray, "side side 3"], down: int, right: int
) -> UInt8[np.ndarray, "side side 3"]:
    """Shifts a picture and fills up with its background."""
    side = len(picture)
    moved = ground.copy()

    def span(step: int) -> tuple[slice, slice]:
        return slice(max(step, 0), side + min(step, 0)), slice(max(-step, 0), side + min(-step, 0))

    (to_rows, rows), (to_columns, columns) = span(down), span(right)
    moved[to_rows, to_columns] = picture[rows, columns]
    return moved


def _visible_tokens(
    picture: UInt8[np.ndarray, "side side 3"], ground: UInt8[np.ndarray, "side side 3"], tokens: int
) -> Bool[np.ndarray, " tokens"]:
    """Returns a mask of the tokens whose tiles show more than background."""
    tiles = round(tokens**0.5)
    size = len(picture) // tiles
    return (figure(picture, ground).reshape(tiles, size, tiles, size).mean((1, 3)) > 0.1).ravel()


def _numbers(seed: int, stream: int, index: int) -> np.random.Generator:
    """Returns random numbers that are independent of those that drew the attributes of the picture."""
    return generator_at(seed, 16 + stream, index)
