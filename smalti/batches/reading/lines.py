"""The lines of an input, none of which is read whole if it is too long."""

import codecs
from collections.abc import Iterator
from typing import BinaryIO, Final

from smalti.batches.reading.rows import INPUT, RowProblem
from smalti.errors import InvalidInputError

MAX_LINE: Final = 1 << 20
"""Bytes of a line."""
_PARQUET: Final = b"PAR1"
_GZIP: Final = b"\x1f\x8b"

TOO_LONG: Final = RowProblem(f"has more than {MAX_LINE} bytes; a prompt has far fewer")


class Lines:
    """Reads lines; of one that is too long, only a beginning is kept, which is longer than the limit."""

    def __init__(self, file: BinaryIO, max_line: int = MAX_LINE) -> None:
        """Starts at the beginning of a file.

        Args:
            file: the file.
            max_line: bytes that a line may have.
        """
        self._file = file
        self._max_line = max_line
        self.number = 0
        """The number of the line that was read last, from 1."""
        self.quotes = 0
        """Quotation marks in what was left out of it."""

    def __iter__(self) -> Iterator[bytes]:
        """Yields the lines with their ends, without a byte order mark.

        Raises:
            InvalidInputError: the file is not text in UTF-8, which its first bytes show.
        """
        readline = self._file.readline
        limit = self._max_line
        line = _without_mark(readline(limit + 2))
        while line:
            self.number += 1
            self.quotes = 0
            if len(line) > limit and not line.endswith(b"\n"):
                while (rest := readline(MAX_LINE)) and not rest.endswith(b"\n"):
                    self.quotes += rest.count(b'"')
                self.quotes += rest.count(b'"')
            yield line
            line = readline(limit + 2)


def decode(line: bytes, max_line: int = MAX_LINE) -> str | RowProblem:
    """Returns a line as text, or what is wrong with it."""
    if len(line) > max_line:
        return TOO_LONG if max_line == MAX_LINE else RowProblem(f"has more than {max_line} bytes")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        return RowProblem(f"is not valid UTF-8: byte {error.start + 1} cannot be decoded")


def _without_mark(start: bytes) -> bytes:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InvalidInputError(INPUT, "is UTF-16; save it as UTF-8")
    if start.startswith(_PARQUET):
        raise InvalidInputError(INPUT, "is a Parquet file; give that as its format")
    if start.startswith(_GZIP):
        raise InvalidInputError(INPUT, "is compressed (gzip); unpack it first")
    return start.removeprefix(codecs.BOM_UTF8)
