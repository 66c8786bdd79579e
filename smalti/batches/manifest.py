"""The files of the manifest: Parquet, with a row for each prompt in the order of the input."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final

from pydantic import ValidationError

from smalti.batches.prompts import PromptResult
from smalti.errors import DamagedObjectError
from smalti.foreign_text import reason_of
from smalti.validation import first_problem

ROWS_IN_GROUP: Final = 4096
"""Rows of a row group; fixed, so that the same rows give the same bytes."""
_ROWS_TOGETHER: Final = 1024
"""Rows that are read together."""


def parse_results(name: str, content: bytes) -> Any:
    """Returns results as a table of the manifest, many times faster than `PromptResult.parse`.

    Args:
        name: what errors call the results.
        content: the results, as `PromptResult.to_bytes` makes them.

    Raises:
        DamagedObjectError: they are not valid.
    """
    import pyarrow as pa
    from pyarrow import json

    try:
        return json.read_json(
            pa.BufferReader(content),
            # A row is never in two blocks.
            read_options=json.ReadOptions(use_threads=False, block_size=len(content) + 1),
            parse_options=json.ParseOptions(
                explicit_schema=manifest_schema(), unexpected_field_behavior="error"
            ),
        )
    except pa.ArrowException as error:
        raise DamagedObjectError(name, reason_of(error)) from None


class ManifestWriter(AbstractContextManager["ManifestWriter"]):
    """Writes a file of the manifest as a stream; the same rows give the same bytes."""

    def __init__(self, path: Path) -> None:
        """Creates the file, or replaces it."""
        from pyarrow import parquet

        self._tables: list[Any] = []
        self._waiting = 0
        # Absolute: a relative path with a colon looks like the address of a store.
        self._writer = parquet.ParquetWriter(path.absolute(), manifest_schema(), compression="zstd")

    def add(self, table: Any) -> None:
        """Writes the rows of a table."""
        self._tables.append(table)
        self._waiting += len(table)
        if self._waiting >= ROWS_IN_GROUP:
            self._flush(self._waiting - self._waiting % ROWS_IN_GROUP)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Completes the file."""
        try:
            if error is None and self._waiting:
                self._flush(self._waiting)
        finally:
            self._writer.close()

    def _flush(self, rows: int) -> None:
        """Writes so many of the rows that wait."""
        import pyarrow as pa

        # As whole arrays: how rows came must not be seen in the file.
        table = pa.concat_tables(self._tables).combine_chunks()
        self._writer.write_table(table.slice(0, rows), row_group_size=ROWS_IN_GROUP)
        self._tables, self._waiting = [table.slice(rows)], self._waiting - rows


def read_manifest(name: str, file: BinaryIO) -> Iterator[PromptResult]:
    """Yields the rows of a file of the manifest as a stream.

    Args:
        name: what errors call the file.
        file: the file; seekable.

    Raises:
        DamagedObjectError: it is not a file of a manifest.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        for batch in parquet.ParquetFile(file).iter_batches(_ROWS_TOGETHER):
            for row in batch.to_pylist():
                yield PromptResult(**row)
    except (pa.ArrowException, OSError) as error:
        raise DamagedObjectError(name, reason_of(error)) from None
    except (ValidationError, TypeError) as error:
        problem = first_problem(error) if isinstance(error, ValidationError) else reason_of(error)
        raise DamagedObjectError(name, str(problem)) from None


def manifest_schema() -> Any:
    """Returns the columns of the manifest: the fields of `PromptResult`."""
    import pyarrow as pa

    text, large, small = pa.string(), pa.int64(), pa.int32()
    picture = pa.struct(
        [
            ("key", text),
            ("candidate", small),
            ("score", pa.float64()),
            ("sha256", text),
            ("size", large),
            ("width", small),
            ("height", small),
            ("wording", text),
        ]
    )
    columns = {
        "row": large,
        "id": text,
        "prompt": text,
        "effective_prompt": text,
        "seed": large,
        "state": text,
        "problem": text,
        "tar": text,
        "model": text,
        "revision": text,
        "pictures": pa.list_(picture),
    }
    return pa.schema(list(columns.items()))
