"""Saying what a prompt leaves open: a style, a size and a place, chosen for each candidate.

The choice follows from (seed, candidate) alone, with integers, so that it is the same on every machine. Over the
candidates of a seed the choices are spread evenly, more evenly than independent ones would be.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, TypeVar

from smalti.text.lexicon import Kind, Lexicon, read_tokens, split
from smalti.text.vocabulary import Layout, article

# The two-dimensional sequence R2: multiples of 1/g and 1/g^2, where g^3 = g + 1, modulo 1. In units of 2^-64.
# http://extremelearning.com.au/unreasonable-effectiveness-of-quasirandom-sequences/
_STEPS: Final = {"style": 0xC13FA9A902A6328F, "layout": 0x91E10DA5C79E7B1D}
_WHOLE: Final = 2**64
_ARTICLES: Final = ("a", "an")
_WITHOUT_LAYOUT: Final[frozenset[Kind]] = frozenset({"count", "relation"})
"""Kinds of words that decide the layout: several copies, or two things."""
_OF_THING: Final[frozenset[Kind]] = frozenset({"pose"})
"""Kinds of words that belong to the thing before them."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class _Reading:
    """The parts of a prompt that matter for what may be added to it."""

    words: tuple[str, ...]
    """The prompt, split at spaces."""
    named: dict[Kind, str]
    """The size, place and style that the prompt names."""
    thing: tuple[int, int] | None
    """Range of the words of the thing with its looks; None unless there is exactly one."""


class Variations:
    """Adds words to prompts, as `words.json` of the model allows."""

    def __init__(self, lexicon: Lexicon) -> None:
        """Takes the words of a model."""
        self._lexicon = lexicon
        self._allowed = lexicon.words.variation

    def __call__(self, prompt: str, seed: int, candidates: Sequence[int]) -> tuple[str, ...]:
        """Returns the wording of each candidate of a prompt that consists of known words."""
        if self._allowed is None:
            return (prompt,) * len(candidates)
        reading = self._read(prompt)
        styles = () if "style" in reading.named else tuple(self._allowed.styles.items())
        layouts = tuple((layout, layout.weight) for layout in self._allowed.layouts if _fits(layout, reading))
        wordings = []
        for candidate in candidates:
            style = _choose(styles, _fraction("style", seed, candidate))
            layout = _choose(layouts, _fraction("layout", seed, candidate))
            wordings.append(_wording(reading, layout or Layout(), style))
        return tuple(wordings)

    def _read(self, prompt: str) -> _Reading:
        words = tuple(prompt.split(" "))
        # A word with a hyphen is several tokens.
        word_of = [index for index, word in enumerate(words) for _ in split(word)]
        named: dict[Kind, str] = {}
        things: list[tuple[int, int]] = []
        before, start, follows, single = None, 0, False, True
        for meaning in self._lexicon.meanings(read_tokens(prompt)):
            end = start + max(len(meaning.said.split()), 1)
            if meaning.kind in ("size", "place", "style"):
                named.setdefault(meaning.kind, meaning.word)
            single &= meaning.kind not in _WITHOUT_LAYOUT
            if meaning.kind in ("colour", "size"):
                before = start if before is None else before
            else:
                if meaning.kind == "thing":
                    things.append((word_of[start if before is None else before], word_of[end - 1] + 1))
                elif follows and meaning.kind in _OF_THING:
                    things[-1] = things[-1][0], word_of[end - 1] + 1
                before = None
            start, follows = end, meaning.kind == "thing"
        return _Reading(words, named, things[0] if single and len(things) == 1 else None)


def _fits(layout: Layout, reading: _Reading) -> bool:
    """Returns whether a layout agrees with what a prompt says; only a single thing has a layout."""
    said = reading.named
    return (
        reading.thing is not None
        and said.get("size") in (None, layout.size)
        and said.get("place") in (None, layout.place)
    )


def _wording(reading: _Reading, layout: Layout, style: str | None) -> str:
    """Returns a prompt with a layout and a style, in the order of captions."""
    words = list(reading.words)
    if reading.thing is not None:
        start, end = reading.thing
        # From the back, so that the positions stay right.
        if layout.place and "place" not in reading.named:
            bare = words[end - 1].removesuffix(",")
            comma = words[end - 1].removeprefix(bare)
            words[end - 1 : end] = [bare, layout.place + comma]
        if layout.size and "size" not in reading.named:
            words.insert(start, layout.size)
            if start and words[start - 1] in _ARTICLES:
                words[start - 1] = article(layout.size)
    if style:
        words += ["in", style, "style"]
    return " ".join(words)


def _fraction(kind: str, seed: int, candidate: int) -> float:
    """Returns a number in [0, 1), evenly spread over the candidates of a seed."""
    start = int.from_bytes(hashlib.sha256(f"{kind} {seed}".encode()).digest()[:8])
    # 53 bits are what a float holds; the number cannot be rounded up to 1.
    return ((start + candidate * _STEPS[kind]) % _WHOLE >> 11) / 2**53


def _choose(weighted: Sequence[tuple[Value, float]], fraction: float) -> Value | None:
    """Returns the value at a fraction of the cumulative weights; None if there are no values."""
    if not weighted:
        return None
    reached = list(accumulate(weight for _, weight in weighted))
    wanted = fraction * reached[-1]
    # Rounding may put the fraction at the very end.
    index = min(bisect_right(reached, wanted), len(weighted) - 1)
    return weighted[index][0]
