"""Where a run's pictures and tokens come from: a composed world, or Parquet shards of anybody's pictures.

A source gives the samples of any position, so that a resumed run goes on with the sample after its last one.
"""

from pathlib import Path
from typing import Protocol

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


class PictureSource(Protocol):
    """Pictures of one resolution."""

    def batch(self, start: int, count: int) -> UInt8[np.ndarray, "count height width 3"]:
        """Returns training pictures from a position on; positions never end."""

    def held_out(self, count: int) -> UInt8[np.ndarray, "count height width 3"]:
        """Returns pictures that training never sees; fewer when there are not so many."""


def open_pictures(folder: Path, resolution: int, seed: int) -> PictureSource:
    """Opens a data folder: a world, or the folder it is in, or Parquet shards with the column `image`.

    Raises:
        InvalidInputError: the folder is none of these.
    """
    world = find_world(folder)
    if world is not None:
        return ComposedPictures(World.load(world, resolution), seed)
    return StoredPictures(folder, resolution, seed)


def find_world(folder: Path) -> Path | None:
    """Returns the folder of the world in a data folder, if there is one."""
    return next((each for each in (folder, folder / "world") if (each / WORLD_FILE).is_file()), None)


class ComposedPictures:
    """Pictures of a world, composed as they are asked for."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._seed = seed

    def batch(self, start: int, count: int) -> UInt8[np.ndarray, "count height width 3"]:
        """Composes pictures of seen combinations."""
        return CompositionDataset(self._world, self._seed).batch(start, count)[0]

    def held_out(self, count: int) -> UInt8[np.ndarray, "count height width 3"]:
        """Composes pictures of held-out combinations; the same for every seed of training."""
        return CompositionDataset(self._world, 0, "held_out").batch(0, count)[0]


class Order:
    """The order of rows: each epoch another one, and a function of seed and position alone."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows = rows
        self._seed = seed
        self._epoch = -1
        self._permutation = np.arange(0)

    def rows_at(self, start: int, count: int) -> Int[np.ndarray, " count"]:
        """Returns the rows of positions from `start` on."""
        return np.array([self._row_at(position) for position in range(start, start + count)])

    def _row_at(self, position: int) -> int:
        epoch, place = divmod(position, self.rows)
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.Philox(key=(self._seed, epoch)))
            self._epoch, self._permutation = epoch, generator.permutation(self.rows)
        return int(self._permutation[place])


class StoredPictures:
    """Pictures of Parquet shards; they stay compressed until they are asked for."""

    def __init__(self, folder: Path, resolution: int, seed: int) -> None:
        self._resolution = resolution
        self._train = read_column(folder, "train", "image")
        self._held_out = read_column(folder, "validation", "image")
        self._order = Order(len(self._train), seed)

    def batch(self, start: int, count: int) -> UInt8[np.ndarray, "count height width 3"]:
        """Reads training pictures, in another order each epoch."""
        return decode_pictures(self._train.take(self._order.rows_at(start, count)), self._resolution)

    def held_out(self, count: int) -> UInt8[np.ndarray, "count height width 3"]:
        """Reads the first pictures of the split `validation`."""
        return decode_pictures(self._held_out[:count], self._resolution)


def decode_pictures(column: pa.ChunkedArray, resolution: int) -> UInt8[np.ndarray, "pictures side side 3"]:
    """Decodes the pictures of a column `image`; those of another size are scaled."""
    pictures = [pixels_of(each) for each in column.to_pylist()]
    sides = (resolution, resolution)
    return np.stack(
        [
            pixels if pixels.shape[:2] == sides else np.array(square(Image.fromarray(pixels), resolution))
            for pixels in pictures
        ]
    )


def read_column(folder: Path, split: str, column: str) -> pa.ChunkedArray:
    """Reads one column of a split.

    Raises:
        InvalidInputError: there is no such split or column, it is empty, or a shard is damaged.
    """
    paths = shard_paths(folder, split)
    if not paths:
        raise InvalidInputError(
            "data", f"{folder} has no world and no Parquet shards {split}-00000.parquet, ..."
        )
    try:
        table = pq.read_table([str(path) for path in paths], columns=[column])
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidInputError("data", f"{folder}: a shard of {split!r} cannot be read ({error})") from None
    if column not in table.column_names:
        raise InvalidInputError("data", f"{folder}: the shards of {split!r} have no column {column!r}")
    if not len(table):
        raise InvalidInputError("data", f"{folder}: the shards of {split!r} have no rows")
    return table.column(column)
