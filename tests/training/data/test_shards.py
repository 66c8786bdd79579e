"""Parquet shards: their size and order."""

from pathlib import Path

import pytest

from smalti.errors import InvalidInputError
from smalti.training.data.shards import ShardWriter, read_rows, shard_paths, splits_in


def test_shards_have_their_size_and_are_read_in_order(tmp_path: Path) -> None:
    import pyarrow as pa

    schema = pa.schema([("number", pa.int64())])
    for count, files in ((0, 0), (9, 1), (10, 1), (11, 2), (35, 4)):
        folder = tmp_path / str(count)
        folder.mkdir()
        with ShardWriter(folder, "train", schema, rows_per_shard=10) as writer:
            for number in range(count):
                writer.write({"number": number})
        assert writer.rows == count
        assert len(shard_paths(folder, "train")) == files
        assert [row["number"] for row in read_rows(folder, "train")] == list(range(count))
    (tmp_path / "9" / "train-00000.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(InvalidInputError, match="cannot be read as a Parquet file"):
        list(read_rows(tmp_path / "9", "train"))
    with pytest.raises(InvalidInputError, match="must have Parquet shards"):
        splits_in(tmp_path)
