"""Captions of composed pictures: many wordings, and every word is true.

Two things are named from left to right, unless the caption says where each of them is.
"""

from collections.abc import Set

import numpy as np

from smalti.text.vocabulary import article
from smalti.training.data.world.attributes import Attributes, Figure, Size
from smalti.training.data.world.description import NATURAL, PLAIN

_SAYS_BIG = 0.15
_SAYS_WHITE = 0.25
_SAYS_STYLE = 0.4

# Each wording with its probability.
_OPENINGS = {
    "{a}": 0.55,
    "{bare}": 0.2,
    "a picture of {a}": 0.1,
    "a drawing of {a}": 0.05,
    "an icon of {a}": 0.05,
    "an image of {a}": 0.05,
}
_PAIRS = {
    "{left} and {right}": 0.6,
    "{left} next to {right}": 0.2,
    "{left} to the left of {right}": 0.1,
    "{right} to the right of {left}": 0.1,
}
_BACKGROUNDS = {" on {background} background": 0.8, " with {background} background": 0.2}
_STYLES = {" in {style} style": 0.7, ", {style} style": 0.3}


def write(attributes: Attributes, generator: np.random.Generator, plurals: Set[str]) -> str:
    """Writes a caption.

    Args:
        attributes: attributes of the picture.
        generator: chooses the wording.
        plurals: things whose word takes no "a".
    """
    opening, pair, background, style, says_size, says_white, says_style = generator.random(7).tolist()
    frame = _choose(_OPENINGS, opening)
    with_article = "{a}" in frame
    if len(attributes.figures) == 1:
        size = attributes.size if attributes.size == "small" or says_size < _SAYS_BIG else None
        subject = _noun(attributes.figures[0], size, with_article, plurals)
    else:
        left, right = (_noun(figure, None, with_article, plurals) for figure in attributes.figures)
        subject = _choose(_PAIRS, pair).format(left=left, right=right)
    text = frame.format(a=subject, bare=subject)
    if attributes.background != PLAIN or says_white < _SAYS_WHITE:
        ground = f"{article(attributes.background)} {attributes.background}"
        text += _choose(_BACKGROUNDS, background).format(background=ground)
    if says_style < _SAYS_STYLE:
        text += _choose(_STYLES, style).format(style=attributes.style)
    return text


def grammar_words() -> tuple[str, ...]:
    """Returns all words of the wordings, without those of a world."""
    frames = [*_OPENINGS, *_PAIRS, *_BACKGROUNDS, *_STYLES, "an"]
    words = {word.strip(",") for frame in frames for word in frame.split()}
    return tuple(sorted(word for word in words if "{" not in word and word))


def _noun(figure: Figure, size: Size | None, with_article: bool, plurals: Set[str]) -> str:
    colour = None if figure.colour == NATURAL else figure.colour
    noun = " ".join(word for word in (size, colour, figure.thing) if word)
    if not with_article or figure.thing in plurals:
        return noun
    return f"{article(noun)} {noun}"


def _choose(weighted: dict[str, float], draw: float) -> str:
    for text, weight in weighted.items():
        draw -= weight
        if draw < 0:
            return text
    return text
