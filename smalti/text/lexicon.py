"""Mapping the words of a prompt to the words that a model of a small world knows."""

import difflib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Literal

from smalti.text.vocabulary import Words

Kind = Literal[
    "thing", "colour", "pattern", "scene", "size", "style", "count", "place", "pose", "relation", "grammar"
]
Phrase = tuple[str, ...]

MAX_PROMPT_LENGTH = 64
"""Number of words that are read; the text encoder has as many tokens."""

_MIN_MISSPELT_LENGTH = 4
"""Shortest known word that is found by its spelling, in letters."""
_MIN_WRONG_LETTER_LENGTH, _MAX_WRONG_LETTER_LENGTH = 6, 40
"""Lengths of words in which one letter may be wrong. Shorter ones too often become a different word."""
_MAX_COMPARED_LENGTH = 64
_MIN_SAME_RATIO = 0.75
"""A synonym with at least this similarity is only another form or spelling of its word: "cats", "grey"."""

# Correct words that are one letter away from words of the shipped world (sailing, elephant, castle, lock ...).
_NOT_MISSPELT = frozenset(
    {"clever", "cover", "elegant", "leave", "look", "looks", "place", "places", "smiling", "violent"}
)
# Words that make no difference to a model that draws things.
_IGNORED = frozenset({
    "at", "be", "draw", "for", "from", "is", "it", "its", "me", "my", "our", "please", "some", "that", "this", "your",
})  # fmt: skip

_WORD_OR_SIGN = re.compile(r"[^\W_]+|[^\w\s]")
_DOUBLED = re.compile(r"(.)\1")
_POSSESSIVE = re.compile(r"['’]s\b")
_SYMBOL = "So"
"""Unicode's category of emoji."""


@dataclass(frozen=True)
class Token:
    """A word of a prompt, or a symbol."""

    said: str
    phrase: Phrase
    """The word alone, or the words of a symbol's Unicode name."""
    is_symbol: bool = False


@dataclass(frozen=True)
class Meaning:
    """The known word for a part of a prompt."""

    said: str
    kind: Kind | None
    """None if the model knows nothing similar."""
    word: str
    """The known word; empty if there is none."""
    exact: bool = False
    """Whether the prompt contains the known word itself."""
    same: bool = False
    """Whether the known word loses nothing: it is the same word, or another form of it."""


@dataclass(frozen=True)
class _Known:
    kind: Kind
    word: str
    certain: bool = True
    """Whether it has the same meaning; False if it is only similar."""


class Lexicon:
    """Finds known words for the words of a prompt.

    Case, accents and hyphens do not matter. An unknown word is looked up among synonyms and neighbours, also as a
    plural, and finally by its spelling. An emoji is looked up by its Unicode name.
    """

    def __init__(self, words: Words) -> None:
        """Builds the tables of a model's words."""
        self.words = words
        kinds: dict[str, Kind] = {}
        by_kind: tuple[tuple[Kind, tuple[str, ...]], ...] = (
            ("thing", words.things),
            ("colour", words.colours + words.backgrounds),
            ("pattern", (*words.patterns, *words.patterns.values())),
            ("scene", words.scenes),
            ("size", words.sizes),
            ("style", words.styles),
            ("count", tuple(words.counts)),
            ("place", words.places),
            ("pose", words.poses),
            ("relation", words.relations),
            ("grammar", words.grammar),
        )
        for kind, known in by_kind:
            for word in known:
                kinds.setdefault(word, kind)
        self._exact = {split(word): _Known(kind, word) for word, kind in kinds.items()}
        for thing, plural in words.many.items():
            self._exact.setdefault(split(plural), _Known("thing", thing))
        self._near: dict[Phrase, _Known] = {}
        for others, certain in ((words.synonyms, True), (words.neighbours, False)):
            for other, word in others.items():
                # A phrase of known words keeps their meaning: "red apple" is not a synonym of "apple".
                if not self._all_known(split(other)):
                    self._near.setdefault(split(other), _Known(kinds[word], word, certain))
        self._max_phrase_length = max(map(len, (*self._exact, *self._near)))

    def meanings(self, tokens: list[Token]) -> Iterator[Meaning]:
        """Yields the meanings of tokens in order; one meaning may cover several tokens ("ice cream")."""
        start = 0
        while start < len(tokens):
            if tokens[start].is_symbol:
                yield self._of_symbol(tokens[start])
                start += 1
                continue
            length, meaning = self._of_words(tokens[start : start + self._max_phrase_length])
            yield meaning
            start += length

    def nearest_thing(self, text: str) -> str:
        """Returns the thing whose name is most similar to a text; the first thing if none is similar."""
        ratio = difflib.SequenceMatcher(None, "", text[:_MAX_COMPARED_LENGTH])

        def likeness(thing: str) -> float:
            ratio.set_seq1(thing)
            return ratio.ratio()

        return max(self.words.things, key=likeness)

    def _of_words(self, tokens: list[Token]) -> tuple[int, Meaning]:
        """Returns the longest phrase at the start of the tokens that has a meaning: its length and the meaning."""
        phrase = tuple(token.phrase[0] for token in takewhile(lambda token: not token.is_symbol, tokens))
        for length in range(len(phrase), 0, -1):
            part = phrase[:length]
            said = " ".join(part)
            if found := self._exact.get(part):
                return length, Meaning(said, found.kind, found.word, exact=True, same=True)
            if found := self._near_or_plural(part):
                return length, Meaning(said, found.kind, found.word, same=_is_same(said, found))
            if not any((word,) in self._exact for word in part) and (found := self._by_spelling(part)):
                return length, Meaning(said, found.kind, found.word)
        return 1, Meaning(phrase[0], None, "", same=phrase[0] in _IGNORED)

    def _of_symbol(self, token: Token) -> Meaning:
        """Returns the meaning of the longest known part of a symbol's name: "cat face" of "smiling cat face"."""
        name = token.phrase
        for length in range(len(name), 0, -1):
            for start in range(len(name) - length + 1):
                part = name[start : start + length]
                found = self._exact.get(part) or self._near.get(part)
                if found and found.kind == "thing":
                    return Meaning(token.said, found.kind, found.word, same=found.certain)
        return Meaning(token.said, None, "")

    def _all_known(self, phrase: Phrase) -> bool:
        return all((word,) in self._exact for word in phrase)

    def _near_or_plural(self, phrase: Phrase) -> _Known | None:
        for form in (phrase, *((*phrase[:-1], word) for word in _singulars(phrase[-1]))):
            if found := self._near.get(form):
                return found
        return None

    def _by_spelling(self, phrase: Phrase) -> _Known | None:
        if phrase[0] in _NOT_MISSPELT | _IGNORED:
            return None
        found = (self._spellings.get(spelling) for spelling in _spellings(" ".join(phrase)))
        return next(filter(None, found), None)

    @cached_property
    def _spellings(self) -> Mapping[str, _Known]:
        """Known words by each of their spellings; without neighbours, whose spellings would be too far away."""
        spellings: dict[str, _Known] = {}
        for phrase, known in (*self._exact.items(), *self._near.items()):
            if known.certain and len("".join(phrase)) >= _MIN_MISSPELT_LENGTH:
                # Also as one word: "icecreem".
                for word in (" ".join(phrase), "".join(phrase)):
                    for spelling in _spellings(word):
                        spellings.setdefault(spelling, known)
        return spellings


def read_tokens(text: str) -> list[Token]:
    """Splits a text into symbols and words in lower case without accents; everything else separates words."""
    tokens = []
    for match in _WORD_OR_SIGN.finditer(_fold(text)):
        said = match[0]
        if said.isalnum():
            tokens.append(Token(said, (said,)))
        elif unicodedata.category(said) == _SYMBOL:
            tokens.append(Token(said, split(unicodedata.name(said, "")), is_symbol=True))
    return tokens


def split(text: str) -> Phrase:
    """Splits a text into its words."""
    return tuple(re.findall(r"[^\W_]+", _fold(text)))


def _fold(text: str) -> str:
    """Returns a text in lower case, without accents, and with "dog" for "dog's"."""
    decomposed = unicodedata.normalize("NFKD", text).lower()
    bare = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return _POSSESSIVE.sub("", unicodedata.normalize("NFC", bare))


def _singulars(word: str) -> Iterator[str]:
    """Yields the possible singular forms of a word."""
    for plural, singular in (("ies", "y"), ("ves", "f"), ("men", "man"), ("es", ""), ("s", "")):
        if word.endswith(plural) and len(word) > len(plural) + 1:
            yield word.removesuffix(plural) + singular


def _spellings(word: str) -> Iterator[str]:
    """Yields a word, its simplified sound, and both with any one letter but the first removed.

    Two words share one of these if they differ by one letter that is missing, added, wrong, or swapped with the next.
    """
    sound = _DOUBLED.sub(r"\1", word.replace("ph", "f").replace("ck", "k"))
    yield from (word, sound)
    for form in (word, sound) if _MIN_WRONG_LETTER_LENGTH <= len(word) <= _MAX_WRONG_LETTER_LENGTH else ():
        yield from (form[:index] + form[index + 1 :] for index in range(1, len(form)))


def _is_same(said: str, found: _Known) -> bool:
    """Returns whether replacing the words of the prompt by a known word loses nothing."""
    if not found.certain:
        return False
    # "photo" instead of "picture" or "huge" instead of "big" makes no difference to the picture.
    if found.kind in ("grammar", "size", "place", "style"):
        return True
    return difflib.SequenceMatcher(None, said, found.word).ratio() >= _MIN_SAME_RATIO
