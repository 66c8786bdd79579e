"""Text from outside: arguments, files, members of archives, rows of tables, and fields of requests come in here.

A text is UTF-8, with or without a byte order mark, or UTF-16 with one, as editors write it. It has no half of a
surrogate pair, which UTF-8 cannot hold, and no NUL character, which databases and C libraries cannot. JSON and TOML are
read within limits of depth. A piece that breaks a rule raises `InvalidInputError`; the caller decides what that costs:
its row, or the whole call.
"""

import codecs
import json
import re
import tomllib
from pathlib import Path
from typing import Any, Final

from smalti.errors import InvalidInputError

_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_HALF_PAIR: Final = re.compile("[\ud800-\udfff]")
# Line breaks of any kind, other control characters, and marks that change the direction of what follows.
_UNPRINTABLE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_ADDRESS: Final = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>|\b0x[0-9a-fA-F]{6,}\b")
MAX_REASON: Final = 200
"""Characters of the text of an exception that a message repeats."""


def check_text(text: str, field: str) -> str:
    """Returns a text that is valid.

    Raises:
        InvalidInputError: it has half of a surrogate pair, as an argument that is not UTF-8 has, or a NUL character.
    """
    if _HALF_PAIR.search(text):
        raise InvalidInputError(field, f"is not valid UTF-8: {printable(text)}")
    if "\0" in text:
        raise InvalidInputError(field, "must not contain the NUL character (U+0000)")
    return text


def decode_text(content: bytes, field: str) -> str:
    """Decodes a text.

    Raises:
        InvalidInputError: it is neither UTF-8 nor UTF-16 with a byte order mark, or has a NUL character.
    """
    mark, encoding = next((each for each in _MARKS if content.startswith(each[0])), (b"", "utf-8"))
    try:
        return check_text(content[len(mark) :].decode(encoding), field)
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            field,
            f"is not valid {encoding[:6].upper()}: byte {len(mark) + error.start + 1} cannot be decoded",
        ) from None


def load_text(path: Path, field: str | None = None) -> str:
    """Loads a text file.

    Args:
        path: the file.
        field: what errors name; the path by default.

    Raises:
        InvalidInputError: the file cannot be read, or is not a valid text.
    """
    field = field or str(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(field, f"cannot be read ({error.strerror})") from None
    return decode_text(content, field)


def parse_json(content: str | bytes, field: str, *, unique: bool = False) -> Any:
    """Parses JSON; numbers that JSON does not have, such as NaN, are refused.

    Args:
        content: the text.
        field: what errors name.
        unique: whether an object that has a key twice is refused; otherwise the last value counts.

    Raises:
        InvalidInputError: it is not JSON, nested too deeply, or not a valid text; its texts may still have half of a
            surrogate pair, which JSON can express.
    """
    text = content if isinstance(content, str) else decode_text(content, field)
    try:
        return json.loads(
            text, parse_constant=_refuse_constant, object_pairs_hook=_unique if unique else None
        )
    except ValueError as error:
        raise InvalidInputError(field, f"is not JSON: {reason_of(error)}") from None
    except RecursionError:
        raise InvalidInputError(field, "is nested too deeply to be read as JSON") from None


def parse_toml(content: str | bytes, field: str) -> dict[str, Any]:
    """Parses TOML.

    Raises:
        InvalidInputError: it is not TOML, nested too deeply, or not a valid text.
    """
    text = content if isinstance(content, str) else decode_text(content, field)
    try:
        # TOML knows no other line breaks, and none in a text of one line.
        return tomllib.loads(text.replace("\r\n", "\n"))
    except ValueError as error:
        raise InvalidInputError(field, f"cannot be read as TOML ({reason_of(error)})") from None
    except RecursionError:
        raise InvalidInputError(field, "is nested too deeply to be read as TOML") from None


def printable(text: str) -> str:
    """Returns a text as one line that any stream with an encoding can show: what is unprintable is escaped."""
    return _UNPRINTABLE.sub(lambda found: _escaped(found[0]), text)


def reason_of(error: BaseException) -> str:
    """Returns why something failed, in one line that is the same in every process: without addresses in memory."""
    text = (error.strerror or "") if isinstance(error, OSError) and error.errno else str(error)
    return printable(" ".join(_ADDRESS.sub("", text).split()))[:MAX_REASON] or type(error).__name__


def _escaped(character: str) -> str:
    code = ord(character)
    if (
        0xDC80 <= code <= 0xDCFF
    ):  # A byte that is not UTF-8, as Python represents it in arguments and names of files.
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:60]!r} occurs twice")
    return found
