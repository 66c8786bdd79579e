"""What every reader of an input yields: rows with their fields, or with what is wrong with them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any, Final, Protocol

from smalti.errors import InvalidInputError

INPUT: Final = "input"
"""The name of the input in errors."""


class InputFormat(StrEnum):
    """The format of an input."""

    TEXT = "text"
    """A prompt in each line."""
    JSONL = "jsonl"
    """A JSON object in each line."""
    CSV = "csv"
    """CSV; the first line has the names of the columns."""
    PARQUET = "parquet"
    OPENAI = "openai"
    """The lines of OpenAI's Batch API."""


_ENDINGS: Final = {
    ".txt": InputFormat.TEXT,
    ".jsonl": InputFormat.JSONL,
    ".csv": InputFormat.CSV,
    ".parquet": InputFormat.PARQUET,
}


def format_of(name: str) -> InputFormat:
    """Returns the format of an input by the ending of its name.

    Raises:
        InvalidInputError: the ending is of no known format.
    """
    ending = PurePosixPath(name).suffix.lower()
    if ending not in _ENDINGS:
        raise InvalidInputError(
            INPUT, f"{name!r:.120} must end in {', '.join(_ENDINGS)}; or give the format of the input"
        )
    return _ENDINGS[ending]


@dataclass(frozen=True, slots=True)
class RowProblem:
    """Why a row cannot be used."""

    problem: str
    column: str = ""
    """The column as the input names it; empty if the row as a whole cannot be used."""


@dataclass(frozen=True, slots=True)
class InputRow:
    """A row of an input."""

    place: int
    """The number of its first line, from 1; in a format without lines, that of the row, from 0."""
    fields: Mapping[str, Any]
    """Its values by the names of `COLUMNS`; as much as could be read, if there is a problem."""
    problem: RowProblem | None = None
    edit: "EditSource | None" = None
    """The picture of which a part is drawn anew, for a row of an edit."""


@dataclass(frozen=True, slots=True)
class EditSource:
    """The pictures of an edit: each the id of a file, or a URL with the content (`data:`)."""

    image: str
    mask: str | None = None


class RowReader(Protocol):
    """Reads the rows of an input as a stream, once."""

    unit: str
    """"line" or "row": what `InputRow.place` counts."""
    has_ids: bool
    """Whether rows may have ids of their own; known once the first row was read."""
    blank: int
    """Blank lines that were read so far."""

    def rows(self, first: int = 0) -> Iterator[InputRow]:
        """Yields the rows from a row on, which is found faster than by reading those before.

        Raises:
            InvalidInputError: the input as a whole cannot be read.
        """
        ...


def message_of(unit: str, place: int, problem: RowProblem) -> str:
    """Returns a problem with its place in the input, in one line."""
    column = f", column {problem.column!r}" if problem.column else ""
    return f"{unit} {place}{column}: {problem.problem}"
