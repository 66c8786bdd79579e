"""Data sets as Parquet shards: `train-00000.parquet`, `train-00001.parquet`, ..."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from smalti.errors import InvalidInputError

ROWS_PER_SHARD = 16_384
_ROWS_PER_GROUP = 1024

Row = dict[str, Any]


class ShardWriter:
    """Writes the shards of a split; the same rows give the same bytes.

    Args:
        folder: folder of the shards.
        split: name of the split.
        schema: columns of the shards.
        rows_per_shard: maximal number of rows in a shard.
    """

    def __init__(
        self, folder: Path, split: str, schema: pa.Schema, rows_per_shard: int = ROWS_PER_SHARD
    ) -> None:
        self.rows = 0
        self._folder = folder
        self._split = split
        self._schema = schema
        self._rows_per_shard = rows_per_shard
        self._pending: list[Row] = []
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        self._close()

    def write(self, row: Row) -> None:
        """Adds a row."""
        self._pending.append(row)
        self.rows += 1
        if len(self._pending) == _ROWS_PER_GROUP or self.rows % self._rows_per_shard == 0:
            self._flush()
        if self.rows % self._rows_per_shard == 0:
            self._close()

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._writer is None:
            number = (self.rows - 1) // self._rows_per_shard
            path = self._folder / f"{self._split}-{number:05}.parquet"
            # Absolute: a relative path with a colon looks like the address of a store.
            self._writer = pq.ParquetWriter(path.absolute(), self._schema, compression="zstd")
        self._writer.write_table(pa.Table.from_pylist(self._pending, schema=self._schema))
        self._pending = []

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def shard_paths(folder: Path, split: str) -> list[Path]:
    """Returns the shards of a split in their order."""
    return sorted(folder.glob(f"{split}-[0-9][0-9][0-9][0-9][0-9].parquet"))


def splits_in(folder: Path) -> list[str]:
    """Returns the names of the splits of a data set.

    Raises:
        InvalidInputError: the folder has no shards.
    """
    names = sorted({path.stem.rpartition("-")[0] for path in folder.glob("*-[0-9]*.parquet")})
    if not names:
        raise InvalidInputError(str(folder), "must have Parquet shards named train-00000.parquet, ...")
    return names


def load_schema(folder: Path, split: str) -> pa.Schema:
    """Loads the schema of a split."""
    return pq.read_schema(shard_paths(folder, split)[0])


def read_rows(folder: Path, split: str) -> Iterator[Row]:
    """Yields the rows of a split, with one group of rows in memory at a time.

    Raises:
        InvalidInputError: a shard is damaged.
    """
    for path in shard_paths(folder, split):
        try:
            with pq.ParquetFile(path) as file:
                for group in file.iter_batches(_ROWS_PER_GROUP):
                    yield from group.to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise InvalidInputError(str(path), f"cannot be read as a Parquet file ({error})") from None
