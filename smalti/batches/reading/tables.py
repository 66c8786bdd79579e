"""Inputs in CSV."""

import csv
from collections.abc import Iterator
from typing import BinaryIO

from smalti.batches.reading.columns import Columns
from smalti.batches.reading.lines import MAX_LINE, TOO_LONG, Lines
from smalti.batches.reading.rows import INPUT, InputRow, RowProblem
from smalti.errors import InvalidInputError
from smalti.foreign_text import reason_of


class CsvReader:
    """Reads the rows of a CSV file, whose quoted fields may have line breaks; a `RowReader`."""

    unit = "line"

    def __init__(self, file: BinaryIO, columns: Columns) -> None:
        self._lines = Lines(file)
        self._columns = columns
        self._start = 1
        """The first line of the row that is read."""
        self._size = 0
        """Bytes of the lines that were read for a row."""
        self._quotes = 0
        """Quotation marks in them."""
        self.has_ids = False
        self.blank = 0

    def rows(self, first: int = 0) -> Iterator[InputRow]:  # noqa: D102
        table = csv.reader(self._text(), strict=True)
        meanings = self._header(table)
        row = 0
        while True:
            self._start = self._lines.number + 1
            self._size, self._quotes = 0, 0
            values: list[str] = []
            try:
                values = next(table)
            except StopIteration:
                return
            except csv.Error as error:
                problem: RowProblem | None = self._damage(error)
            else:
                if not any(map(str.strip, values)):
                    self.blank += 1
                    continue
                problem = self._problem(values, len(meanings))
            if row >= first:
                fields = zip(meanings, values if len(values) == len(meanings) else (), strict=False)
                yield InputRow(self._start, {key: value for key, value in fields if key is not None}, problem)
            row += 1

    def _header(self, table: Iterator[list[str]]) -> list[str | None]:
        try:
            # Blank lines above the names of the columns do no harm.
            names = next(filter(any, table), [])
        except csv.Error as error:
            raise InvalidInputError(INPUT, f"line {self._lines.number}: {_reason(error)}") from None
        if not names:
            raise InvalidInputError(INPUT, "is empty; its first line must name the columns, such as prompt")
        names = [name.strip() for name in names]
        if problem := self._problem(names, len(names)):
            raise InvalidInputError(INPUT, f"line {self._lines.number}: {problem.problem}")
        if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
            raise InvalidInputError(INPUT, f"line {self._lines.number}: columns must be separated by commas")
        meanings = self._columns.check_header(names)
        self.has_ids = "id" in meanings
        return meanings

    def _text(self) -> Iterator[str]:
        """Yields the lines as text; bytes that are not UTF-8 become halves of surrogate pairs."""
        for line in self._lines:
            is_inside = self._quotes % 2 == 1
            self._quotes += line.count(b'"') + self._lines.quotes
            self._size += len(line)
            if self._size <= MAX_LINE:
                yield line.decode(errors="surrogateescape")
                continue
            # The row ends with its line, or else it is not known where the next one begins.
            if self._quotes % 2:
                raise InvalidInputError(INPUT, f"line {self._start}: {TOO_LONG.problem}")
            yield '"\n' if is_inside else "too long\n"

    def _problem(self, values: list[str], columns: int) -> RowProblem | None:
        if self._size > MAX_LINE:
            return TOO_LONG
        if len(values) != columns:
            return RowProblem(
                f"has {len(values)} fields, but there are {columns} columns; put quotation marks around a field that "
                "has a comma"
            )
        if not all(map(str.isascii, values)):
            try:
                "".join(values).encode()
            except UnicodeEncodeError:
                return RowProblem("is not valid UTF-8")
        return None

    def _damage(self, error: csv.Error) -> RowProblem:
        """Returns what is wrong with a row; raises `InvalidInputError` where the next one cannot be found."""
        if self._quotes % 2 or self._lines.number > self._start:
            raise InvalidInputError(
                INPUT,
                f"line {self._start}: has a quotation mark that is not closed, or a field that is too long",
            )
        return TOO_LONG if self._size > MAX_LINE else RowProblem(_reason(error))


def _reason(error: csv.Error) -> str:
    if "new-line" in str(error):
        return "has a carriage return outside quotation marks; put the field into them"
    return f"is not CSV: {reason_of(error)}"
