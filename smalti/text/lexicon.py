"""What the words of a prompt mean to a model of a small world: the word itself, or the nearest known one."""

import difflib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Literal

from smalti.text.vocabulary import Words

Kind = Literal["thing", "colour", "size", "style", "grammar"]
Phrase = tuple[str, ...]

MAX_PROMPT_LENGTH = 64
"""Words that are looked at: as many as the text encoder has tokens."""

_SHORTEST, _LONGEST = 4, 40
"""Letters of what may be misspelt."""
_LONG = 6
"""Letters of a word in which one may be wrong: of shorter ones, too many are words of their own."""
_LETTERS_COMPARED = 64
_SAME = 0.75
"""A synonym as much like its word as this is only another form or spelling of it: "cats", "grey"."""

# One letter away from words of the shipped world (sailing, elephant, castle, lock ...), but not meant as them.
_NOT_MISSPELT = frozenset(
    {"clever", "cover", "elegant", "leave", "look", "looks", "place", "places", "smiling", "violent"}
)
# Without these, too, a prompt says the same to a model that draws things.
_SAYING_NOTHING = frozenset({
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
    """The word alone; of a symbol the words of its Unicode name."""
    is_symbol: bool = False


@dataclass(frozen=True)
class Meaning:
    """What a part of a prompt means to the model."""

    said: str
    kind: Kind | None
    """None for what the model does not know anything like."""
    word: str
    """The known word; empty without one."""
    exact: bool = False
    """Whether it was said with the known word itself."""
    same: bool = False
    """Whether nothing is lost with the known word: it is the one said, or another form of it."""


@dataclass(frozen=True)
class _Known:
    kind: Kind
    word: str
    surely: bool = True
    """Whether it is what was meant, and not only like it."""


class Lexicon:
    """Finds the meaning of words, however they are written.

    Case, accents and hyphens do not matter. What is not known itself is looked for among synonyms and
    neighbours, in the plural too, and at last by its spelling. An emoji means what its name in Unicode does.
    """

    def __init__(self, words: Words) -> None:
        """Makes the tables of a model's words."""
        self.words = words
        kinds: dict[str, Kind] = {}
        by_kind: tuple[tuple[Kind, tuple[str, ...]], ...] = (
            ("thing", words.things),
            ("colour", words.colours + words.backgrounds),
            ("size", words.sizes),
            ("style", words.styles),
            ("grammar", words.grammar),
        )
        for kind, known in by_kind:
            for word in known:
                kinds.setdefault(word, kind)
        self._exact = {split(word): _Known(kind, word) for word, kind in kinds.items()}
        self._near: dict[Phrase, _Known] = {}
        for others, surely in ((words.synonyms, True), (words.neighbours, False)):
            for other, word in others.items():
                # A phrase of known words means what they do: "red apple" is no other word for "apple".
                if not self._all_known(split(other)):
                    self._near.setdefault(split(other), _Known(kinds[word], word, surely))
        self._longest = max(map(len, (*self._exact, *self._near)))

    def meanings(self, tokens: list[Token]) -> Iterator[Meaning]:
        """Yields the meaning of tokens, in order; one may be that of several ("ice cream")."""
        start = 0
        while start < len(tokens):
            if tokens[start].is_symbol:
                yield self._of_symbol(tokens[start])
                start += 1
                continue
            length, meaning = self._of_words(tokens[start : start + self._longest])
            yield meaning
            start += length

    def nearest_thing(self, text: str) -> str:
        """Returns the thing whose word has most in common with a text; the first one if none has."""
        ratio = difflib.SequenceMatcher(None, "", text[:_LETTERS_COMPARED])

        def likeness(thing: str) -> float:
            ratio.set_seq1(thing)
            return ratio.ratio()

        return max(self.words.things, key=likeness)

    def _of_words(self, tokens: list[Token]) -> tuple[int, Meaning]:
        """Returns the meaning of the longest phrase that the tokens begin with, and its length."""
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
        return 1, Meaning(phrase[0], None, "", same=phrase[0] in _SAYING_NOTHING)

    def _of_symbol(self, token: Token) -> Meaning:
        """Returns the meaning of the longest part of its name: "cat face" of "smiling cat face"."""
        name = token.phrase
        for length in range(len(name), 0, -1):
            for start in range(len(name) - length + 1):
                part = name[start : start + length]
                found = self._exact.get(part) or self._near.get(part)
                if found and found.kind == "thing":
                    return Meaning(token.said, found.kind, found.word, same=found.surely)
        return Meaning(token.said, None, "")

    def _all_known(self, phrase: Phrase) -> bool:
        return all((word,) in self._exact for word in phrase)

    def _near_or_plural(self, phrase: Phrase) -> _Known | None:
        for form in (phrase, *((*phrase[:-1], word) for word in _singulars(phrase[-1]))):
            if found := self._near.get(form):
                return found
        return None

    def _by_spelling(self, phrase: Phrase) -> _Known | None:
        if phrase[0] in _NOT_MISSPELT | _SAYING_NOTHING:
            return None
        found = (self._spellings.get(spelling) for spelling in _spellings(" ".join(phrase)))
        return next(filter(None, found), None)

    @cached_property
    def _spellings(self) -> Mapping[str, _Known]:
        """What is known by all its spellings; what is only like something known would be too far away."""
        spellings: dict[str, _Known] = {}
        for phrase, known in (*self._exact.items(), *self._near.items()):
            if known.surely and len("".join(phrase)) >= _SHORTEST:
                # In one word too: "icecreem".
                for word in (" ".join(phrase), "".join(phrase)):
                    for spelling in _spellings(word):
                        spellings.setdefault(spelling, known)
        return spellings


def read_tokens(text: str) -> list[Token]:
    """Splits a text into words in lower case without accents, and symbols; all else separates words."""
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
    """Yields what a word may be the plural of."""
    for plural, singular in (("ies", "y"), ("ves", "f"), ("men", "man"), ("es", ""), ("s", "")):
        if word.endswith(plural) and len(word) > len(plural) + 1:
            yield word.removesuffix(plural) + singular


def _spellings(word: str) -> Iterator[str]:
    """Yields a word, how it sounds, and each of these with one letter missing; the first letter stays.

    Two words have one of these in common when one letter is missing, too many, wrong, or has changed place.
    """
    sound = _DOUBLED.sub(r"\1", word.replace("ph", "f").replace("ck", "k"))
    yield from (word, sound)
    for form in (word, sound) if _LONG <= len(word) <= _LONGEST else ():
        yield from (form[:place] + form[place + 1 :] for place in range(1, len(form)))


def _is_same(said: str, found: _Known) -> bool:
    """Says whether nothing is lost when a known word stands for what was said."""
    if not found.surely:
        return False
    # "photo" for "picture" and "huge" for "big" change no picture.
    if found.kind in ("grammar", "size", "style"):
        return True
    return difflib.SequenceMatcher(None, said, found.word).ratio() >= _SAME
