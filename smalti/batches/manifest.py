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


class ManifestWriter(AbstractContextManager["ManifestWriter"]):
    """Writes a file of the manifest as a stream; the same rows give the same bytes."""

    def __init__(self, path: Path) -> None:
        """Creates the file, or replaces it."""
        from pyarrow import parquet

        self._schema = _schema()
        self._rows: list[dict[str, Any]] = []
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")

    def add(self, result: PromptResult) -> None:
        """Writes a row."""
        self._rows.append(result.model_dump())
        if len(self._rows) == ROWS_IN_GROUP:
            self._flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Completes the file."""
        try:
            if error is None:
                self._flush()
        finally:
            self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._writer.write_table(
                pa.Table.from_pylist(self._rows, self._schema), row_group_size=ROWS_IN_GROUP
            )
            self._rows.clear()


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


def _schema() -> Any:
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
