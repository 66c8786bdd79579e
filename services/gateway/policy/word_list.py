"""The operator's list of words and patterns that no prompt may contain.

One entry per line; empty lines, and lines that begin with `#`, are skipped. An entry is a word or several words, or a
regular expression between slashes, in the syntax of RE2, whose time is linear in the length of a prompt. Case, accents
and invisible characters make no difference.
"""

import logging
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import re2

from smalti.errors import InvalidInputError
from smalti.foreign_text import load_text
from smalti.network import WatchedFiles
from smalti.services.gateway.settings import GATEWAY_PREFIX

log = logging.getLogger(__name__)

VARIABLE: Final = f"{GATEWAY_PREFIX}POLICY_LIST"

_WORD = re2.compile(r"[\pL\pN]+")


class _Entries:
    """What a file says."""

    def __init__(self, path: Path) -> None:
        """Reads the file; raises `InvalidInputError` naming the line."""
        self._phrases: dict[tuple[str, ...], int] = {}
        # One by one: a set of patterns finds nothing at all once it runs out of memory.
        self._patterns: list[tuple[int, Any]] = []
        for number, line in _lines(path):
            if len(line) > 1 and line[0] == line[-1] == "/":
                self._add_pattern(number, line[1:-1])
            elif words := tuple(_words(_plain(line))):
                self._phrases.setdefault(words, number)
            else:
                raise InvalidInputError(VARIABLE, f"line {number}: has neither letters nor digits")
        self._max_words = max(map(len, self._phrases), default=0)

    def find(self, text: str) -> int | None:
        plain = _plain(text)
        words = tuple(_words(plain))
        found = [
            number
            for count in range(1, self._max_words + 1)
            for start in range(len(words) - count + 1)
            if (number := self._phrases.get(words[start : start + count])) is not None
        ]
        found += [number for number, pattern in self._patterns if pattern.search(plain)]
        return min(found, default=None)

    def _add_pattern(self, number: int, pattern: str) -> None:
        options = re2.Options()
        options.log_errors = False
        options.case_sensitive = False
        try:
            compiled = re2.compile(_without_marks(pattern), options)
        except re2.error as error:
            problem = str(error.args[0] if error.args else error).removeprefix("b'").removesuffix("'")
            raise InvalidInputError(
                VARIABLE, f"line {number}: not a regular expression of RE2 ({problem})"
            ) from None
        self._patterns.append((number, compiled))


class WordList:
    """Finds prompts that contain an entry of a file; thread-safe. A changed file is read again."""

    def __init__(self, path: Path) -> None:
        """Reads the file.

        Raises:
            InvalidInputError: it cannot be read, or a line of it is invalid.
        """
        self._path = path
        self._lock = threading.Lock()
        self._watched = WatchedFiles([path])
        self._entries = _Entries(path)

    def find(self, text: str) -> int | None:
        """Returns the line of the first entry that a text contains; None if it contains none."""
        with self._lock:
            if self._watched.changed():
                self._read_again()
            entries = self._entries
        return entries.find(text)

    def _read_again(self) -> None:
        try:
            self._entries = _Entries(self._path)
        except InvalidInputError as error:
            log.error("the changed list is not used, the one before still is: %s", error)
        else:
            log.info("%s: the changed list is used", VARIABLE)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = load_text(path)
    except InvalidInputError as error:
        raise InvalidInputError(VARIABLE, f"{path} {error.problem}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if (stripped := line.strip()) and not stripped.startswith("#"):
            yield number, stripped


def _plain(text: str) -> str:
    """Returns a text without case, accents, and characters that are not seen."""
    return _without_marks(text.casefold()).casefold()


def _without_marks(text: str) -> str:
    split = unicodedata.normalize("NFKD", text)
    return "".join(each for each in split if unicodedata.category(each) not in ("Mn", "Cf"))


def _words(plain: str) -> list[str]:
    return [match.group() for match in _WORD.finditer(plain)]
