"""Inputs with a prompt, or a JSON object, in each line."""

from collections.abc import Iterator
from typing import Any, BinaryIO, Final

from smalti.batches.reading.columns import Columns
from smalti.batches.reading.lines import MAX_LINE, Lines, decode
from smalti.batches.reading.rows import InputRow, RowProblem
from smalti.errors import InvalidInputError
from smalti.foreign_text import parse_json

_MAX_SHAPES: Final = 1000
"""Sets of keys whose meanings are kept."""


class TextReader:
    """Reads a prompt from each line; a `RowReader`."""

    unit = "line"
    has_ids = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.blank = 0

    def rows(self, first: int = 0) -> Iterator[InputRow]:  # noqa: D102
        lines = Lines(self._file)
        row = 0
        for line in lines:
            text = decode(line)
            if isinstance(text, str) and not text.strip():
                self.blank += 1
                continue
            if row >= first:
                yield (
                    InputRow(lines.number, {"prompt": text})
                    if isinstance(text, str)
                    else InputRow(lines.number, {}, text)
                )
            row += 1


class JsonReader:
    """Reads a JSON object from each line; a `RowReader`."""

    unit = "line"
    has_ids = True

    def __init__(self, file: BinaryIO, columns: Columns) -> None:
        self._file = file
        self._columns = columns
        self._shapes: dict[tuple[str, ...], list[str | None]] = {}
        self.blank = 0

    def rows(self, first: int = 0) -> Iterator[InputRow]:  # noqa: D102
        lines = Lines(self._file)
        row = 0
        for line in lines:
            if line.isspace():
                self.blank += 1
                continue
            if row >= first:
                yield self._row(lines.number, line)
            row += 1

    def _row(self, number: int, line: bytes) -> InputRow:
        found = read_object(line)
        if isinstance(found, RowProblem):
            return InputRow(number, {}, found)
        try:
            return InputRow(number, self._named(found))
        except InvalidInputError as error:
            return InputRow(number, {}, RowProblem(error.problem))

    def _named(self, record: dict[str, Any]) -> dict[str, Any]:
        """Returns the values of a row by the meanings of their columns."""
        shape = tuple(record)
        meanings = self._shapes.get(shape)
        if meanings is None:
            meanings = self._columns.meanings(shape)
            if len(self._shapes) < _MAX_SHAPES:
                self._shapes[shape] = meanings
        return {
            meaning: value
            for meaning, value in zip(meanings, record.values(), strict=True)
            if meaning is not None
        }


def read_object(line: bytes, max_line: int = MAX_LINE) -> dict[str, Any] | RowProblem:
    """Returns the JSON object in a line of at most so many bytes, or what is wrong with it."""
    text = decode(line, max_line)
    if isinstance(text, RowProblem):
        return text
    try:
        found = parse_json(text, "line", unique=True)
    except InvalidInputError as error:
        return RowProblem(error.problem)
    if not isinstance(found, dict):
        return RowProblem(f"must be a JSON object, not {json_type(found)}")
    return found


def json_type(value: Any) -> str:
    """Returns what JSON calls the type of a value, for errors."""
    names = (
        (bool, "true or false"),
        (int | float, "a number"),
        (str, "a text"),
        (list, "a list"),
        (dict, "an object"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), "null")
