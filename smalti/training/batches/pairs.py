"""Pictures with their captions, batch by batch, as the ranker learns them.

The ranker's loss takes every other picture of a batch for a wrong one. So no two samples of a batch may mean the same,
and the more alike they are otherwise, the more there is to learn from them.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeVar, get_args

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from smalti.errors import InvalidInputError
from smalti.training.batches.captioned import held_out_splits
from smalti.training.batches.sources import Order, decode_pictures, find_world, read_column
from smalti.training.data.world.attributes import SPLITS, Attributes, Split
from smalti.training.data.world.composition import (
    CompositionDataset,
    World,
    caption,
    compose,
    draw_attributes,
)
from smalti.training.data.world.description import NATURAL
from smalti.training.data.world.lookalikes import acceptable_colours

Aspect = Literal["thing", "colour", "background"]
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)
_TRIES = 200
"""So many samples are drawn at most for each that a batch needs."""
_PATIENCE = 1000
"""After so many that mean what another one does there are no more."""
_NEIGHBOUR_TRIES = 8
_CAPTIONS = 4000
_CAPTIONS_AT_ONCE = 500

T = TypeVar("T")


class Pairs(NamedTuple):
    """Pictures and what they show."""

    pixels: UInt8[np.ndarray, "pictures height width 3"]
    captions: list[str]


class PairSource(Protocol):
    """Where pictures with captions come from."""

    def batch(self, number: int) -> Pairs:
        """Returns a training batch, a function of its number; no two of its samples mean the same."""

    def held_out(self, count: int) -> list[Pairs]:
        """Returns batches of about `count` samples that training never sees, each made as those of training are."""

    def captions(self) -> list[str]:
        """Returns training captions to learn the words from."""


def open_pairs(folder: Path, resolution: int, batch_size: int, seed: int, alike: int) -> PairSource:
    """Opens a data folder: a world, or the folder it is in, or Parquet shards with `image` and `caption`.

    Args:
        folder: the data folder.
        resolution: side of the pictures.
        batch_size: samples in a batch.
        seed: of everything random.
        alike: samples of a world that come together and differ in one aspect from the first of them; 1 for none.

    Raises:
        InvalidInputError: the folder is none of these, or has nothing for a split.
    """
    world = find_world(folder)
    if world is not None:
        return ComposedPairs(World.load(world, resolution), batch_size, seed, alike)
    return StoredPairs(folder, resolution, batch_size, seed)


class ComposedPairs:
    """Pictures of a world, composed as they are asked for."""

    def __init__(self, world: World, batch_size: int, seed: int, alike: int) -> None:
        """Keeps what batches are made of; see `open_pairs`."""
        self._world = world
        self._size = batch_size
        self._seed = seed
        self._alike = alike
        same = acceptable_colours(world)[:, world.colours.index(NATURAL)]
        self._natural = {
            (thing, colour)
            for row, thing in enumerate(world.things)
            for colour in np.array(world.colours)[same[row]]
        }

    def batch(self, number: int) -> Pairs:
        """Composes a batch of seen combinations."""
        return self._compose("train", self._seed, number)

    def held_out(self, count: int) -> list[Pairs]:
        """Composes batches of held-out combinations; the same for every seed of training."""
        return [self._compose("held_out", 0, number) for number in range(max(count // self._size, 1))]

    def captions(self) -> list[str]:
        """Returns captions of the first training samples."""
        dataset = CompositionDataset(self._world, self._seed)
        return [
            text
            for start in range(0, _CAPTIONS, _CAPTIONS_AT_ONCE)
            for text in dataset.batch(start, _CAPTIONS_AT_ONCE)[1]
        ]

    def draw(self, split: Split, seed: int, number: int) -> tuple[list[Attributes], list[str]]:
        """Draws what is on the pictures of a batch, and what their captions say.

        Raises:
            InvalidInputError: the world has too few different pictures.
        """
        # The batch's number is the counter's highest word, so no two batches share a number.
        bits = np.random.Philox(key=(seed, len(SPLITS) + SPLITS.index(split)), counter=(0, 0, 0, number))
        generator = np.random.Generator(bits)
        most = _TRIES * self._size
        drawn = (draw_attributes(self._world, seed, number * most + place, split) for place in range(most))
        samples = _distinct(self._grouped(drawn, generator, split), self._meaning, self._size)
        return samples, [caption(attributes, generator, self._world) for attributes in samples]

    def _compose(self, split: Split, seed: int, number: int) -> Pairs:
        samples, captions = self.draw(split, seed, number)
        return Pairs(np.stack([compose(self._world, attributes) for attributes in samples]), captions)

    def _grouped(
        self, drawn: Iterator[Attributes], generator: np.random.Generator, split: Split
    ) -> Iterator[Attributes]:
        """Follows a sample by some that differ from it in one aspect, as far as the split has them."""
        for first in drawn:
            yield first
            aspects = deque(generator.permutation(ASPECTS).tolist())
            for _ in range(self._alike - 1):
                for _, other in zip(range(_NEIGHBOUR_TRIES), drawn, strict=False):
                    near = neighbour(first, other, aspects[0], int(generator.integers(len(first.figures))))
                    if self._belongs(near, split) and near != first:
                        yield near
                        break
                aspects.rotate()

    def _meaning(self, attributes: Attributes) -> tuple[Hashable]:
        """Returns what every caption of a picture says of it; a caption may leave out its style and size.

        A thing in a colour that looks like its own is the thing in its own colours.
        """
        figures = tuple(
            replace(figure, colour=NATURAL) if (figure.thing, figure.colour) in self._natural else figure
            for figure in attributes.figures
        )
        return ((figures, attributes.background),)

    def _belongs(self, attributes: Attributes, split: Split) -> bool:
        things = [figure.thing for figure in attributes.figures]
        return (
            len(set(things)) == len(things)
            and self._world.split_of(attributes) == split
            and self._world.is_visible(attributes)
        )


def neighbour(first: Attributes, other: Attributes, aspect: Aspect, place: int) -> Attributes:
    """Returns the first picture with one aspect of the other one.

    Args:
        first: what stays, style and place included.
        other: where the aspect is from.
        aspect: which.
        place: of the figure that it belongs to; the background has none.
    """
    if aspect == "background":
        return replace(first, background=other.background)
    figures = list(first.figures)
    figures[place] = replace(figures[place], **{aspect: getattr(other.figures[0], aspect)})
    return replace(first, figures=tuple(figures))


class StoredPairs:
    """Pictures and captions of Parquet shards; pictures stay compressed until they are asked for."""

    def __init__(self, folder: Path, resolution: int, batch_size: int, seed: int) -> None:
        """Opens the splits; see `open_pairs`."""
        self._train = _Split.read(folder, "train")
        self._held_out = _Split.read(folder, held_out_splits(folder)[0])
        self._resolution = resolution
        self._size = batch_size
        self._seed = seed
        self._order = Order(len(self._train), seed)

    def batch(self, number: int) -> Pairs:
        """Reads training pictures, in another order each epoch; one that repeats another gives way to a random one."""
        return self._train.pairs(
            _distinct(self._rows(number), self._train.keys, self._size), self._resolution
        )

    def held_out(self, count: int) -> list[Pairs]:
        """Reads the first samples of the split, without those that repeat another of their batch."""
        rows = range(min(count, len(self._held_out)))
        parts = [
            list(_without_repetitions(rows[start : start + self._size], self._held_out.keys))
            for start in range(0, len(rows), self._size)
        ]
        # One picture alone is never taken for another.
        parts = [part for part in parts if len(part) > 1]
        if not parts:
            raise InvalidInputError("data", "what is held out has no two pictures with different captions")
        return [self._held_out.pairs(part, self._resolution) for part in parts]

    def captions(self) -> list[str]:
        """Returns the first training captions."""
        return self._train.captions[:_CAPTIONS].to_pylist()

    def _rows(self, number: int) -> Iterator[int]:
        yield from self._order.rows_at(number * self._size, self._size).tolist()
        generator = np.random.Generator(np.random.Philox(key=(self._seed, 1), counter=(0, 0, 0, number)))
        yield from generator.integers(0, len(self._train), _TRIES * self._size).tolist()


@dataclass(frozen=True)
class _Split:
    """The columns of a split."""

    images: pa.ChunkedArray
    captions: pa.ChunkedArray

    @classmethod
    def read(cls, folder: Path, split: str) -> "_Split":
        return cls(read_column(folder, split, "image"), read_column(folder, split, "caption"))

    def __len__(self) -> int:
        return len(self.captions)

    def keys(self, row: int) -> tuple[Hashable, ...]:
        """Returns what another sample must not share: the caption, and the picture itself."""
        return self.captions[row].as_py(), self.images[row].as_py()

    def pairs(self, rows: Sequence[int], resolution: int) -> Pairs:
        return Pairs(
            decode_pictures(self.images.take(rows), resolution), self.captions.take(rows).to_pylist()
        )


def _distinct(samples: Iterable[T], keys: Callable[[T], tuple[Hashable, ...]], count: int) -> list[T]:
    """Returns the first samples that share no key; raises `InvalidInputError` when there are too few."""
    chosen = list(islice(_without_repetitions(samples, keys), count))
    if len(chosen) < count:
        raise InvalidInputError(
            "batch_size",
            f"{count} is too large: the data has about {len(chosen)} samples of different meaning",
        )
    return chosen


def _without_repetitions(samples: Iterable[T], keys: Callable[[T], tuple[Hashable, ...]]) -> Iterator[T]:
    taken: set[Hashable] = set()
    repeated = 0
    for sample in samples:
        theirs = keys(sample)
        if taken.isdisjoint(theirs):
            taken.update(theirs)
            repeated = 0
            yield sample
        else:
            repeated += 1
            if repeated == _PATIENCE:
                return
