"""Pictures with their captions, from which the ranker learns.

The ranker's loss treats every other picture of a batch as a wrong one. So no two samples of a batch may mean the same,
and the more alike they are otherwise, the more they teach.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeVar, get_args, runtime_checkable

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from smalti.errors import InvalidInputError
from smalti.training.batches.captioned import held_out_splits
from smalti.training.batches.random_numbers import generator_at
from smalti.training.batches.sources import ShuffledRows, decode_pictures, find_world, load_column
from smalti.training.data.world.attributes import SPLITS, Attributes, Split
from smalti.training.data.world.composition import (
    CompositionDataset,
    World,
    caption,
    compose,
    draw_attributes,
)
from smalti.training.data.world.description import NATURAL, Size
from smalti.training.data.world.lookalikes import acceptable_colours

Aspect = Literal["thing", "colour", "background", "count", "order"]
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)
_MAX_TRIES = 200
"""Maximal number of samples that are drawn for each one that a batch needs."""
_MAX_REPETITIONS = 1000
"""After this many repetitions in a row the data is taken to have no further samples."""
_MAX_NEIGHBOUR_TRIES = 8
_STREAM = 1
"""Stream of random numbers of stored pairs; see `generator_at`."""
_CAPTIONS = 4000
"""Number of captions from which the text tokenizer is learned."""
_CAPTIONS_AT_ONCE = 500

T = TypeVar("T")


class Pairs(NamedTuple):
    """Pictures with their captions."""

    pixels: UInt8[np.ndarray, "pictures height width 3"]
    captions: list[str]


@runtime_checkable
class PairSource(Protocol):
    """A source of pictures with captions."""

    def batch(self, number: int) -> Pairs:
        """Returns a training batch, a function of its number. No two of its samples mean the same."""

    def held_out(self, count: int) -> list[Pairs]:
        """Returns batches of about `count` samples that training never sees, made like those of training."""

    def captions(self) -> list[str]:
        """Returns training captions from which the text tokenizer is learned."""


def open_pairs(folder: Path, resolution: int, batch_size: int, seed: int, alike: int) -> PairSource:
    """Opens a data folder: a world, the folder around it, or Parquet shards with `image` and `caption`.

    Args:
        folder: the data folder.
        resolution: side of the pictures.
        batch_size: samples in a batch.
        seed: seed of everything random.
        alike: size of a group of pictures of a world that differ from the first in one aspect; 1 for no groups.

    Raises:
        InvalidInputError: the folder has neither a world nor such shards, or a split is missing or empty.
    """
    world = find_world(folder)
    if world is not None:
        return ComposedPairs(World.load(world, resolution), batch_size=batch_size, seed=seed, alike=alike)
    return StoredPairs(folder, resolution=resolution, batch_size=batch_size, seed=seed)


class ComposedPairs:
    """Pictures of a world, composed on demand."""

    def __init__(self, world: World, *, batch_size: int, seed: int, alike: int) -> None:
        """Makes the source; `open_pairs` explains the arguments."""
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
        """Composes a batch of combinations for training."""
        return self._compose("train", self._seed, number)

    def held_out(self, count: int) -> list[Pairs]:
        """Composes batches of held-out combinations, which do not depend on the seed."""
        return [self._compose("held_out", 0, number) for number in range(max(count // self._size, 1))]

    def captions(self) -> list[str]:
        """Returns the captions of the first training samples."""
        dataset = CompositionDataset(self._world, self._seed)
        return [
            text
            for start in range(0, _CAPTIONS, _CAPTIONS_AT_ONCE)
            for text in dataset.batch(start, _CAPTIONS_AT_ONCE)[1]
        ]

    def draw(self, split: Split, seed: int, number: int) -> tuple[list[Attributes], list[str]]:
        """Draws the attributes and captions of a batch.

        Raises:
            InvalidInputError: the world has too few different pictures.
        """
        generator = generator_at(seed, len(SPLITS) + SPLITS.index(split), number)
        most = _MAX_TRIES * self._size
        drawn = (draw_attributes(self._world, seed, number * most + index, split) for index in range(most))
        samples = _distinct(self._grouped(drawn, generator, split), self._meaning, self._size)
        return samples, [caption(attributes, generator, self._world) for attributes in samples]

    def _compose(self, split: Split, seed: int, number: int) -> Pairs:
        samples, captions = self.draw(split, seed, number)
        return Pairs(np.stack([compose(self._world, attributes) for attributes in samples]), captions)

    def _grouped(
        self, drawn: Iterator[Attributes], generator: np.random.Generator, split: Split
    ) -> Iterator[Attributes]:
        """Yields each sample followed by some that differ from it in one aspect, if the split has them."""
        for first in drawn:
            yield first
            aspects = deque(generator.permutation(ASPECTS).tolist())
            for _ in range(self._alike - 1):
                for _, other in zip(range(_MAX_NEIGHBOUR_TRIES), drawn, strict=False):
                    near = neighbour(first, other, aspects[0], int(generator.integers(len(first.figures))))
                    if self._belongs(near, split) and near != first:
                        yield near
                        break
                aspects.rotate()

    def _meaning(self, attributes: Attributes) -> tuple[Hashable]:
        """Returns what every caption of a picture mentions; style, size and place may be left out of a caption.

        A thing in a tint that looks like its own colours counts as the thing in its own colours.
        """
        figures = tuple(
            replace(figure, colour=NATURAL) if (figure.thing, figure.colour) in self._natural else figure
            for figure in attributes.figures
        )
        return ((figures, attributes.background, attributes.count, attributes.relation, attributes.pose),)

    def _belongs(self, attributes: Attributes, split: Split) -> bool:
        return (
            self._world.vocabulary.allows(attributes)
            and self._world.split_of(attributes) == split
            and self._world.is_visible(attributes)
        )


def neighbour(first: Attributes, other: Attributes, aspect: Aspect, figure: int) -> Attributes:
    """Returns the attributes of a picture with one aspect of another one.

    Args:
        first: attributes to change in one aspect.
        other: attributes from which the aspect is taken.
        aspect: the aspect.
        figure: index of the figure that is changed, for its thing and colour.

    Returns:
        the changed attributes; `first` itself if it has no such aspect. The order is that of two things, which is
        always reversed.
    """
    if aspect == "background":
        return replace(first, background=other.background)
    if aspect == "order":
        return replace(first, figures=first.figures[::-1])
    if aspect == "count":
        if first.is_pair or first.count == other.count:
            return first
        size: Size = "small" if other.count > 1 else "usual"
        return replace(first, count=other.count, size=size, place="middle", pose="upright", offset=(0, 0))
    figures = list(first.figures)
    figures[figure] = replace(figures[figure], **{aspect: getattr(other.figures[0], aspect)})
    return replace(first, figures=tuple(figures))


class StoredPairs:
    """Pictures and captions of Parquet shards; pictures are decoded on demand."""

    def __init__(self, folder: Path, *, resolution: int, batch_size: int, seed: int) -> None:
        """Opens the splits; `open_pairs` explains the arguments."""
        self._train = _Split.load(folder, "train")
        self._held_out = _Split.load(folder, held_out_splits(folder)[0])
        self._resolution = resolution
        self._size = batch_size
        self._seed = seed
        self._order = ShuffledRows(len(self._train), seed)

    def batch(self, number: int) -> Pairs:
        """Returns training pictures, shuffled anew in each epoch; repetitions are replaced by random samples."""
        return self._train.pairs(
            _distinct(self._rows(number), self._train.keys, self._size), self._resolution
        )

    def held_out(self, count: int) -> list[Pairs]:
        """Returns the first samples of the split, without repetitions inside a batch."""
        rows = range(min(count, len(self._held_out)))
        parts = [
            list(_without_repetitions(rows[start : start + self._size], self._held_out.keys))
            for start in range(0, len(rows), self._size)
        ]
        # A single picture cannot be confused with another.
        parts = [part for part in parts if len(part) > 1]
        if not parts:
            raise InvalidInputError(
                "data", "the held-out split must have two pictures with different captions"
            )
        return [self._held_out.pairs(part, self._resolution) for part in parts]

    def captions(self) -> list[str]:
        """Returns the first training captions."""
        return self._train.captions[:_CAPTIONS].to_pylist()

    def _rows(self, number: int) -> Iterator[int]:
        yield from self._order.rows_at(number * self._size, self._size).tolist()
        generator = generator_at(self._seed, _STREAM, number)
        yield from generator.integers(0, len(self._train), _MAX_TRIES * self._size).tolist()


@dataclass(frozen=True)
class _Split:
    """Columns of a split."""

    images: pa.ChunkedArray
    captions: pa.ChunkedArray

    @classmethod
    def load(cls, folder: Path, split: str) -> "_Split":
        return cls(load_column(folder, split, "image"), load_column(folder, split, "caption"))

    def __len__(self) -> int:
        return len(self.captions)

    def keys(self, row: int) -> tuple[Hashable, ...]:
        """Returns the caption and the picture; another sample of the batch must share neither."""
        return self.captions[row].as_py(), self.images[row].as_py()

    def pairs(self, rows: Sequence[int], resolution: int) -> Pairs:
        return Pairs(
            decode_pictures(self.images.take(rows), resolution), self.captions.take(rows).to_pylist()
        )


def _distinct(samples: Iterable[T], keys: Callable[[T], tuple[Hashable, ...]], count: int) -> list[T]:
    """Returns the first samples that share no key; raises `InvalidInputError` if there are too few."""
    chosen = list(islice(_without_repetitions(samples, keys), count))
    if len(chosen) < count:
        raise InvalidInputError(
            "batch_size",
            f"must be at most the number of samples with different meanings, about {len(chosen)}, not {count}",
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
            if repeated == _MAX_REPETITIONS:
                return
