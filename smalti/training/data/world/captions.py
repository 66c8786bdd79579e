"""Captions of composed pictures: many wordings, and every word is true.

What a caption does not name stays open: "a cat" may be a cat in any style, mirrored, and a little beside the middle. A
small thing is always called small, and copies, relations and poses are always named. Two things that are only named
stand side by side, from left to right.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from smalti.text.vocabulary import article
from smalti.training.data.world.attributes import CORNERS, Attributes, Figure, Place, Pose
from smalti.training.data.world.description import NATURAL, PLAIN, Relation
from smalti.training.data.world.vocabulary import Vocabulary

_SAYS_BIG = 0.7
_SAYS_ONE = 0.06
_SAYS_PLACE = 0.75
_SAYS_MIDDLE = 0.1
_SAYS_WHITE = 0.2
_SAYS_STYLE = 0.45
_SAYS_NUMBER_IN_FIGURES = 0.2
_DRAWS = 14

NUMBERS = ("one", "two", "three", "four")
"""Number words, from 1 on."""

# Each wording with its probability.
_OPENINGS = {
    "{a}": 0.6,
    "{bare}": 0.17,
    "a picture of {a}": 0.09,
    "a drawing of {a}": 0.05,
    "an icon of {a}": 0.05,
    "an image of {a}": 0.04,
}
_PAIRS: dict[Relation, dict[str, float]] = {
    "beside": {
        "{first} and {second}": 0.5,
        "{first} next to {second}": 0.2,
        "{first} to the left of {second}": 0.1,
        "{first} left of {second}": 0.05,
        "{second} to the right of {first}": 0.1,
        "{second} right of {first}": 0.05,
    },
    "above": {
        "{first} above {second}": 0.5,
        "{first} over {second}": 0.1,
        "{second} below {first}": 0.25,
        "{second} under {first}": 0.15,
    },
    "in front of": {"{first} in front of {second}": 0.65, "{second} behind {first}": 0.35},
}
_PLACES: dict[Place, dict[str, float]] = {
    "middle": {" in the middle": 0.6, " in the center": 0.4},
    "top": {" at the top": 1},
    "bottom": {" at the bottom": 1},
    "left": {" on the left": 0.8, " on the left side": 0.2},
    "right": {" on the right": 0.8, " on the right side": 0.2},
    **{
        corner: {
            f" in the {corner} corner": 0.7,
            f" in the {'upper' if corner.startswith('top') else 'lower'} {corner.split()[1]} corner": 0.15,
            f" at the {corner}": 0.15,
        }
        for corner in CORNERS
    },
}
_POSES: dict[Pose, dict[str, float]] = {
    "upright": {"{noun}": 1},
    "upside down": {"{noun} upside down": 0.5, "upside down {noun}": 0.5},
    "tilted left": {"{noun} tilted to the left": 1},
    "tilted right": {"{noun} tilted to the right": 1},
}
_BACKGROUNDS = {" on {background} background": 0.8, " with {background} background": 0.2}
_PATTERNS = {" on a {pattern} {colour} background": 0.75, " on {background} background with {nouns}": 0.25}
_STYLES = {" in {style} style": 0.7, ", {style} style": 0.3}


@dataclass(frozen=True, kw_only=True)
class _Wording:
    """The choices among the wordings: numbers in [0, 1), and what is said of what may be left out."""

    opening: float = 0
    relation: float = 0
    place: float = 0
    pose: float = 0
    ground: float = 0
    scene: float = 0
    style: float = 0
    says_big: bool = True
    says_one: bool = False
    in_figures: bool = False
    says_place: bool = True
    says_middle: bool = False
    says_white: bool = False
    says_style: bool = False


def write(attributes: Attributes, generator: np.random.Generator, words: Vocabulary) -> str:
    """Writes a caption.

    Args:
        attributes: attributes of the picture.
        generator: chooses the wording.
        words: words of the world.
    """
    opening, relation, place, pose, ground, scene, style, *says = generator.random(_DRAWS).tolist()
    return _write(
        attributes,
        words,
        _Wording(
            opening=opening,
            relation=relation,
            place=place,
            pose=pose,
            ground=ground,
            scene=scene,
            style=style,
            says_big=says[0] < _SAYS_BIG,
            says_one=says[1] < _SAYS_ONE,
            in_figures=says[2] < _SAYS_NUMBER_IN_FIGURES,
            says_place=says[3] < _SAYS_PLACE,
            says_middle=says[4] < _SAYS_MIDDLE,
            says_white=says[5] < _SAYS_WHITE,
            says_style=says[6] < _SAYS_STYLE,
        ),
    )


def usual_caption(attributes: Attributes, words: Vocabulary) -> str:
    """Returns the caption of a picture in its most common wording; the style is left out."""
    return _write(attributes, words, _Wording())


def grammar_words() -> tuple[str, ...]:
    """Returns all words of the wordings, without those of a world."""
    frames = [
        *_OPENINGS,
        *_BACKGROUNDS,
        *_PATTERNS,
        *_STYLES,
        *(frame for frames in (*_PAIRS.values(), *_PLACES.values(), *_POSES.values()) for frame in frames),
        *("an", "one"),
    ]
    words = {word.strip(",") for frame in frames for word in frame.split()}
    return tuple(sorted(word for word in words if "{" not in word and word))


def phrases() -> dict[str, list[str]]:
    """Returns the phrases of the wordings by kind: "places", "poses" and "relations"."""

    def bare(frames: Iterable[Mapping[str, float]]) -> list[str]:
        texts = [re.sub(r"{\w+}", "", frame).strip() for each in frames for frame in each]
        return sorted({text for text in texts if text not in ("", "and")})

    return {
        "places": bare(_PLACES.values()),
        "poses": bare(_POSES.values()),
        "relations": bare(_PAIRS.values()),
    }


def _write(attributes: Attributes, words: Vocabulary, wording: _Wording) -> str:
    frame = _choose(_OPENINGS, wording.opening)
    subject = _subject(attributes, words, wording, with_article="{a}" in frame)
    text = frame.format(a=subject, bare=subject) + _ground(attributes.background, words, wording)
    if wording.says_style:
        text += _choose(_STYLES, wording.style).format(style=attributes.style)
    return text


def _subject(attributes: Attributes, words: Vocabulary, wording: _Wording, with_article: bool) -> str:
    figure, *others = attributes.figures
    if others:
        first, second = (
            _with_article(_noun(each), words, each.thing) if with_article else _noun(each)
            for each in attributes.figures
        )
        return _choose(_PAIRS[attributes.relation], wording.relation).format(first=first, second=second)
    if attributes.count > 1:
        number = str(attributes.count) if wording.in_figures else NUMBERS[attributes.count - 1]
        colour = "" if figure.colour == NATURAL else f"{figure.colour} "
        return f"{number} {colour}{words.plurals[figure.thing]}"
    says_size = attributes.size != "usual" and (attributes.size != "big" or wording.says_big)
    noun = f"{attributes.size} {_noun(figure)}" if says_size else _noun(figure)
    noun = _choose(_POSES[attributes.pose], wording.pose).format(noun=noun)
    if with_article:
        is_one = wording.says_one and figure.thing not in words.uncounted
        noun = f"one {noun}" if is_one else _with_article(noun, words, figure.thing)
    says_place = wording.says_middle if attributes.place == "middle" else wording.says_place
    # Only a small thing has a place: a large one fills the picture.
    if says_place and attributes.size in ("small", "tiny"):
        noun += _choose(_PLACES[attributes.place], wording.place)
    return noun


def _ground(background: str, words: Vocabulary, wording: _Wording) -> str:
    if background in words.scenes:
        phrases = words.scenes[background]
        # The usual wording as often as all others together.
        index = 0 if wording.ground < 0.5 else int(wording.scene * len(phrases))
        return f" {phrases[index]}"
    if background == PLAIN and not wording.says_white:
        return ""
    pattern, _, colour = background.rpartition(" ")
    ground = f"{article(colour)} {colour}"
    if not pattern:
        return _choose(_BACKGROUNDS, wording.ground).format(background=ground)
    return _choose(_PATTERNS, wording.ground).format(
        pattern=pattern, colour=colour, background=ground, nouns=words.patterns[pattern]
    )


def _noun(figure: Figure) -> str:
    return figure.thing if figure.colour == NATURAL else f"{figure.colour} {figure.thing}"


def _with_article(noun: str, words: Vocabulary, thing: str) -> str:
    return noun if thing in words.uncounted else f"{article(noun)} {noun}"


def _choose(weighted: Mapping[str, float], draw: float) -> str:
    for text, weight in weighted.items():
        draw -= weight
        if draw < 0:
            return text
    return text
