"""Inputs in Apache Parquet."""

from collections.abc import Iterator
from typing import Any, BinaryIO, Final

from smalti.batches.reading.columns import Columns
from smalti.batches.reading.rows import INPUT, InputRow, RowProblem
from smalti.errors import InvalidInputError
from smalti.foreign_text import reason_of

_ROWS: Final = 32
"""Rows that are decoded together; few, since each may have a text of any length."""
_BUFFER: Final = 1 << 20
"""Bytes of a column that are read together."""


class ParquetReader:
    """Reads the rows of a Parquet file, and of its columns those that are needed; a `RowReader`."""

    unit = "row"

    def __init__(self, file: BinaryIO, columns: Columns) -> None:
        """Reads the description of the columns.

        Raises:
            InvalidInputError: the file is not Parquet, or a column is missing, unknown, or of a wrong type.
        """
        import pyarrow as pa
        from pyarrow import parquet

        self._failures = (pa.ArrowException, OSError, ValueError)
        self._columns = columns
        self.blank = 0
        try:
            # Without a buffer, a column of a row group is read whole.
            self._file = parquet.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
            schema = self._file.schema_arrow
        except self._failures as error:
            raise self._damaged(error) from None
        meanings = columns.check_header(schema.names)
        self._meanings = {
            name: each for name, each in zip(schema.names, meanings, strict=True) if each is not None
        }
        self.has_ids = "id" in meanings
        prompts = schema.field(columns.name_of("prompt")).type
        if pa.types.is_dictionary(prompts):
            prompts = prompts.value_type
        if not (pa.types.is_string(prompts) or pa.types.is_large_string(prompts)):
            raise InvalidInputError(
                INPUT, f"column {columns.name_of('prompt')!r} must have the type string, not {prompts!s:.60}"
            )

    def rows(self, first: int = 0) -> Iterator[InputRow]:  # noqa: D102
        groups, before = self._groups_from(first)
        row = before
        try:
            batches = self._file.iter_batches(_ROWS, row_groups=groups, columns=list(self._meanings))
            for batch in batches:
                if row + batch.num_rows > first:
                    yield from self._rows_of(batch, row, first)
                row += batch.num_rows
        except self._failures as error:
            raise self._damaged(error) from None

    def _groups_from(self, first: int) -> tuple[list[int], int]:
        """Returns the row groups from the one with a row on, and the number of rows before them."""
        metadata = self._file.metadata
        before = 0
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            if before + rows > first:
                return list(range(group, metadata.num_row_groups)), before
            before += rows
        return [], before

    def _rows_of(self, batch: Any, start: int, first: int) -> Iterator[InputRow]:
        values = [_values(batch.column(name)) for name in self._meanings]
        meanings = list(self._meanings.values())
        for number, row in enumerate(zip(*values, strict=True), start):
            if number >= first:
                bad = next(
                    (name for name, value in zip(self._meanings, row, strict=True) if value is _NOT_UTF8),
                    None,
                )
                problem = None if bad is None else RowProblem("is not valid UTF-8", bad)
                fields = {
                    key: value for key, value in zip(meanings, row, strict=True) if value is not _NOT_UTF8
                }
                yield InputRow(number, fields, problem)

    @staticmethod
    def _damaged(error: BaseException) -> InvalidInputError:
        return InvalidInputError(INPUT, f"is not a Parquet file, or is damaged: {reason_of(error)}")


_NOT_UTF8: Final = object()


def _values(column: Any) -> list[Any]:
    """Returns the values of a column; `_NOT_UTF8` for a text that is none."""
    try:
        found: list[Any] = column.to_pylist()
        return found
    except UnicodeDecodeError:
        return [_value(each) for each in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return _NOT_UTF8
