"""Standard streams that may be closed, full, or unable to show every character."""

import codecs
import contextlib
import errno
import io
import os
import sys
from typing import Final

__all__ = ["LOST", "discard_output", "prepare", "write_line"]

LOST: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE, errno.EBADF})
"""Errors after which a stream takes nothing more."""

_SHOWN: Final = "smalti.shown"
"""The name of the handler of characters that a stream cannot show."""


def prepare() -> None:
    """Makes sure that there are three streams, and that no character ends the program."""
    for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The next file or connection that is opened would be written to as if it were the stream.
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    codecs.register_error(_SHOWN, _show)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_SHOWN)


def write_line(line: str) -> None:
    """Writes a line on standard error, if it takes one."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{' '.join(line.split())}\n")
        sys.stderr.flush()


def discard_output() -> None:
    """Drops what standard output has not taken, which the interpreter would try to write again at its end."""
    opened = os.open(os.devnull, os.O_WRONLY)
    os.dup2(opened, 1)
    os.close(opened)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()


def _show(error: UnicodeError) -> tuple[str | bytes, int]:
    """Shows bytes of file names as they are, and other characters that the stream does not have as question marks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return "?", error.start + 1
