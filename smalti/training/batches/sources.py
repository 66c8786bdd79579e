"""Pictures of a data folder: composed from a world, or read from Parquet shards.

A source returns the samples from any position on, so that a resumed run continues where it stopped.
"""

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int, UInt8
from PIL import Image

from smalti.errors import InvalidInputError
from smalti.training.data.pictures import pixels_of, square
from smalti.training.data.shards import shard_paths
from smalti.training.data.world.composition import CompositionDataset, World

WORLD_FILE = "world.json"


@runtime_checkable
class PictureSource(Protocol):
    """Pictures of one resolution, for training and for evaluation."""

    def batch(self, start: int, count: int) -> UInt8[np.ndarray, "count height width 3"]:
        """Returns training pictures from a position on; every position has a picture."""

    def held_out(self, count: int) -> UInt8[np.ndarray, "count height width 3"]:
        """Returns at most `count` pictures that training never sees."""


def open_pictures(folder: Path, resolution: int, seed: int) -> PictureSource:
    """Opens a data folder: a world, the folder around it, or Parquet shards with the column `image`.

    Raises:
        InvalidInputError: the folder has neither a world nor such shards.
    """
    world = find_world(folder)
    if world is not None:
        return ComposedPictures(World.load(world, resolution), seed)
    return StoredPictures(folder, resolution, seed)


def find_world(folder: Path) -> Path | None:
    """Returns the folder of the world in a data folder, or None."""
    return next((each for each in (folder, folder / "world") if (each / WORLD_FILE).is_file()), None)


def require_world(data: Path) -> Path:
    """Returns the folder of the world in a data folder.

    Raises:
        InvalidInputError: the data folder has no world.
    """
    folder = find_world(data)
    if folder is None:
        raise InvalidInputError("data", f"{data} has no world; make one with `smalti data build`")
    return folder


class ComposedPictures:
    """Pictures of a world, composed on demand."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._seed = seed

    def batch(self, start: int, count: int) -> UInt8[np.ndarray, "count height width 3"]:
        """Composes pictures of combinations for training."""
        return CompositionDataset(self._world, self._seed).batch(start, count)[0]

    def held_out(self, count: int) -> UInt8[np.ndarray, "count height width 3"]:
        """Composes pictures of held-out combinations, which do not depend on the seed."""
        return CompositionDataset(self._world, 0, "held_out").batch(0, count)[0]


class ShuffledRows:
    """An endless order of rows, shuffled anew in each epoch; a function of seed and position alone."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows = rows
        self._seed = seed
        self._epoch = -1
        self._permutation = np.arange(0)

    def rows_at(self, start: int, count: int) -> Int[np.ndarray, " count"]:
        """Returns the rows at `count` positions from `start` on."""
        return np.array([self._row_at(position) for position in range(start, start + count)])

    def _row_at(self, position: int) -> int:
        epoch, index = divmod(position, self.rows)
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.Philox(key=(self._seed, epoch)))
            self._epoch, self._permutation = epoch, generator.permutation(self.rows)
        return int(self._permutation[index])


class StoredPictures:
    """Pictures of Parquet shards, decoded on demand."""

    def __init__(self, folder: Path, resolution: int, seed: int) -> None:
        self._resolution = resolution
        self._train = load_column(folder, "train", "image")
        self._held_out = load_column(folder, "validation", "image")
        self._order = ShuffledRows(len(self._train), seed)

    def batch(self, start: int, count: int) -> UInt8[np.ndarray, "count height width 3"]:
        """Decodes training pictures, in another order in each epoch."""
        return decode_pictures(self._train.take(self._order.rows_at(start, count)), self._resolution)

    def held_out(self, count: int) -> UInt8[np.ndarray, "count height width 3"]:
        """Decodes the first pictures of the split `validation`."""
        return decode_pictures(self._held_out[:count], self._resolution)


def decode_pictures(column: pa.ChunkedArray, resolution: int) -> UInt8[np.ndarray, "pictures side side 3"]:
    """Decodes the pictures of a column `image`, and scales those of another size."""
    pictures = [pixels_of(each) for each in column.to_pylist()]
    sides = (resolution, resolution)
    return np.stack(
        [
            pixels if pixels.shape[:2] == sides else np.array(square(Image.fromarray(pixels), resolution))
            for pixels in pictures
        ]
    )


def load_column(folder: Path, split: str, column: str) -> pa.ChunkedArray:
    """Loads one column of a split.

    Raises:
        InvalidInputError: the split or the column is missing or empty, or a shard is damaged.
    """
    paths = shard_paths(folder, split)
    if not paths:
        raise InvalidInputError(
            "data", f"{folder} must have a world, or Parquet shards named {split}-00000.parquet, ..."
        )
    try:
        table = pq.read_table([str(path.absolute()) for path in paths], columns=[column])
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidInputError("data", f"{folder}: a shard of {split!r} cannot be read ({error})") from None
    if column not in table.column_names:
        raise InvalidInputError("data", f"{folder}: the shards of {split!r} have no column {column!r}")
    if not len(table):
        raise InvalidInputError("data", f"{folder}: the shards of {split!r} have no rows")
    return table.column(column)
