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
    """Reads lines; of one that is too long, only a beginning of more than `MAX_LINE` bytes is kept."""

    def __init__(self, file: BinaryIO) -> None:
        """Starts at the beginning of a file."""
        self._file = file
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
        line = _without_mark(readline(MAX_LINE + 2))
        while line:
            self.number += 1
            self.quotes = 0
            if len(line) > MAX_LINE and not line.endswith(b"\n"):
                while (rest := readline(MAX_LINE)) and not rest.endswith(b"\n"):
                    self.quotes += rest.count(b'"')
                self.quotes += rest.count(b'"')
            yield line
            line = readline(MAX_LINE + 2)


def decode(line: bytes) -> str | RowProblem:
    """Returns a line as text, or what is wrong with it."""
    if len(line) > MAX_LINE:
        return TOO_LONG
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
