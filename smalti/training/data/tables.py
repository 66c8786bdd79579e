"""Rows of CSV and TSV files as people and programs write them; a bad row costs itself, never the rows after it."""

import codecs
import csv
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from smalti.errors import InvalidInputError
from smalti.foreign_text import check_text, reason_of

MAX_LINE: Final = 1 << 20
"""Longest line of a table or of JSON lines, and longest text of a caption, in characters."""
_MAX_LINES: Final = 200
"""Most lines of one row, whose quoted fields may have line breaks."""
_UNCLOSED: Final = "unexpected end of data"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table, or what is wrong with it."""

    line: int
    """Number of its first line."""
    fields: dict[str, str]
    """Its fields by the names of their columns, in lower case."""
    problem: str = ""


def read_table(
    path: Path, required: tuple[str, ...], starts_row: Callable[[dict[str, str]], bool]
) -> Iterator[Row]:
    """Yields the rows of a table below its line of names.

    A field in quotation marks may have line breaks. If its quotation mark is not closed, or the lines after it are rows
    themselves, the mark was not meant so: its line is the bad row, and the next line begins the next one.

    Args:
        path: the file; tabs separate the fields if it ends in .tsv, commas otherwise.
        required: the columns that must be there.
        starts_row: tells whether fields are those of a row for certain.

    Raises:
        InvalidInputError: a column is missing.
        OSError: the file cannot be read.
    """
    csv.field_size_limit(2 * MAX_LINE)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with _open(path) as file:
        lines = _Lines(file)
        columns: list[str] | None = None
        while (line := lines.next()) is not None:
            number = lines.number
            try:
                fields = _fields(line, lines, delimiter, columns, starts_row)
            except (csv.Error, InvalidInputError) as error:
                problem = error.problem if isinstance(error, InvalidInputError) else reason_of(error)
                if columns is None:
                    raise InvalidInputError("source", f"{path}: its line of names {problem}") from None
                yield Row(line=number, fields={}, problem=problem)
                continue
            if not any(field.strip() for field in fields):
                continue
            if columns is None:
                columns = [name.strip().lower() for name in fields]
                if missing := set(required) - set(columns):
                    raise InvalidInputError("source", f"{path} must have a column {min(missing)!r}")
            else:
                yield Row(line=number, fields=dict(zip(columns, fields, strict=False)))
        if columns is None:
            raise InvalidInputError("source", f"{path} must have a column {min(required)!r}")


class _Lines:
    """The lines of a file, of which some can be given back."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._again: deque[str] = deque()
        self.number = 0
        """Number of the line that was returned last."""

    def next(self) -> str | None:
        """Returns the next line with its end; None after the last one."""
        line = self._again.popleft() if self._again else self._read()
        self.number += line is not None
        return line

    def give_back(self, lines: list[str]) -> None:
        """Makes the last lines the next ones again."""
        self._again.extendleft(reversed(lines))
        self.number -= len(lines)

    def _read(self) -> str | None:
        line = part = self._file.readline(MAX_LINE + 1)
        # Only the start of a line that is too long is kept, which is enough to refuse it.
        while len(part) > MAX_LINE and not part.endswith(("\n", "\r")):
            part = self._file.readline(MAX_LINE + 1)
        return line or None


def _fields(
    line: str,
    lines: _Lines,
    delimiter: str,
    columns: list[str] | None,
    starts_row: Callable[[dict[str, str]], bool],
) -> list[str]:
    """Returns the fields of the row that begins with a line, and takes the lines that belong to it."""
    taken: list[str] = []
    text = line
    while True:
        if len(text) > MAX_LINE:
            lines.give_back(taken)
            raise InvalidInputError("row", f"has more than {MAX_LINE} characters")
        if not taken:
            check_text(text, "row")
        try:
            fields: list[str] = next(
                csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True)
            )
        except csv.Error as error:
            more = lines.next() if _UNCLOSED in str(error) and len(taken) < _MAX_LINES else None
            if more is None or _is_row(more, delimiter, columns, starts_row):
                lines.give_back(taken if more is None else [*taken, more])
                if _UNCLOSED in str(error):
                    raise InvalidInputError("row", "has a quotation mark that is not closed") from None
                raise
            taken.append(more)
            text += more
            continue
        for field in fields:
            check_text(field, "row")
        return fields


def _is_row(
    line: str, delimiter: str, columns: list[str] | None, starts_row: Callable[[dict[str, str]], bool]
) -> bool:
    """Returns whether a line, which may be the inside of a quoted field, is a row by itself."""
    if columns is None:
        return False
    try:
        fields = next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return False
    return len(fields) == len(columns) and starts_row(dict(zip(columns, fields, strict=True)))


def _open(path: Path) -> TextIO:
    with path.open("rb") as file:
        start = file.read(2)
    if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return path.open(encoding="utf-16", errors="replace", newline="")
    # Bytes that are not UTF-8 become halves of surrogate pairs, so that they cost one row and not the whole file.
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
