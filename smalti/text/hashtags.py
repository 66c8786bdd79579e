"""Splitting a hashtag into its words: "throwbackthursday" is "throw back thursday"."""

import math
import re
import threading
from array import array
from collections import defaultdict
from pathlib import Path

import numpy as np

from smalti.errors import ModelError

_BETWEEN_PARTS = re.compile("[^a-zA-Z0-9']+")


class WordRanks:
    """The rank of each word of a list that is sorted by how often the words occur.

    The published list has millions of words in 34 MB, and a dictionary of them would take 300 MB. Here the words of
    each length are in a sorted array, with their ranks in a second one, and are found by bisection. This takes 50 MB.

    Args:
        path: the list; the first field of line n is the word of rank n. For a word that occurs twice, the last line
            counts.

    Raises:
        ModelError: the file cannot be read, or contains no words.
    """

    def __init__(self, path: Path) -> None:
        letters: defaultdict[int, bytearray] = defaultdict(bytearray)
        ranks: defaultdict[int, array[int]] = defaultdict(lambda: array("i"))
        try:
            with path.open("rb") as lines:
                for rank, line in enumerate(lines, start=1):
                    fields = line.split(None, 1)
                    # Hashtags are transliterated before they are split, so they contain only ASCII words.
                    if fields and fields[0].isascii():
                        letters[len(fields[0])] += fields[0]
                        ranks[len(fields[0])].append(rank)
        except OSError as error:
            raise ModelError(
                f"{path}: cannot be read ({error.strerror}); it is needed to split hashtags"
            ) from error
        if not ranks:
            raise ModelError(f"{path}: contains no words; each line must be a word and its count")
        self.max_length = max(ranks)
        self._by_length: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for length in ranks:
            words = np.frombuffer(letters[length], dtype=f"S{length}")
            order = np.argsort(words, kind="stable")
            self._by_length[length] = words[order], np.asarray(ranks[length])[order]

    def cost(self, word: str) -> float:
        """Returns ln(rank), or infinity for a word that is not in the list."""
        encoded = word.encode("ascii")
        words, ranks = self._by_length.get(len(encoded), (None, None))
        if words is None or ranks is None:
            return math.inf
        last = int(np.searchsorted(words, encoded, side="right")) - 1
        return math.log(ranks[last]) if last >= 0 and words[last] == encoded else math.inf


class HashtagSplitter:
    """Splits a text without spaces into the words with the lowest total cost (`WordRanks.cost`).

    The list of words is read at the first call, since few prompts contain a hashtag.

    Args:
        words: the file that `WordRanks` reads.

    Raises:
        ModelError: the file is missing; the first call raises it if the file cannot be used.
    """

    def __init__(self, words: Path) -> None:
        if not words.is_file():
            raise ModelError(f"{words}: no such file; it is needed to split hashtags into words")
        self._path = words
        self._ranks: WordRanks | None = None
        self._lock = threading.Lock()

    def __call__(self, hashtag: str) -> str:
        """Returns the words of a hashtag (ASCII, without its "#"), separated by single spaces."""
        return " ".join(word for part in _BETWEEN_PARTS.split(hashtag) for word in self._words(part))

    def _words(self, text: str) -> list[str]:
        """Returns the pieces with the lowest cost, by dynamic programming over their ends."""
        ranks = self._load()
        # For each end: the cost of the cheapest split of text[:end], and the length of its last piece. If two are
        # equally cheap, the shorter last piece is taken, so that unknown text is split into single characters.
        best = [(0.0, 0)]
        for end in range(1, len(text) + 1):
            best.append(
                min(
                    (best[end - length][0] + ranks.cost(text[end - length : end].lower()), length)
                    for length in range(1, min(end, ranks.max_length) + 1)
                )
            )
        pieces: list[str] = []
        end = len(text)
        while end > 0:
            piece = text[end - best[end][1] : end]
            end -= len(piece)
            if pieces and piece != "'" and _belong_together(piece, pieces[0]):
                pieces[0] = piece + pieces[0]
            else:
                pieces.insert(0, piece)
        return pieces

    def _load(self) -> WordRanks:
        # Two threads with their first hashtag at the same time must not both read the list.
        with self._lock:
            if self._ranks is None:
                self._ranks = WordRanks(self._path)
            return self._ranks


def _belong_together(piece: str, following: str) -> bool:
    return following == "'s" or (piece[-1].isdigit() and following[0].isdigit())
