"""Drawing the attributes of pictures at random, by the chances of a world's description."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from smalti.training.data.world.attributes import PLACES, POSES, Attributes, Figure, Place, Pose
from smalti.training.data.world.description import MAX_COUNT, NATURAL, PLAIN, Chances, Relation, Size
from smalti.training.data.world.vocabulary import Vocabulary

_DRAWS = 20
_VARIANTS = 1 << 20

T = TypeVar("T")


def propose(words: Vocabulary, generator: np.random.Generator) -> Attributes:
    """Draws attributes, which may be of any split and need not be visible."""
    draws = generator.random(_DRAWS).tolist()
    kind, first, second, style, varied = draws[:5]
    chances = words.chances
    thing = _pick(words.things, first)
    figures: tuple[Figure, ...] = (Figure(thing, _colour(words, *draws[5:8])),)
    relation: Relation = "beside"
    count = 1
    size: Size = "usual"
    place: Place = "middle"
    pose: Pose = "upright"
    pairs = chances.beside + chances.above + chances.front
    if kind < pairs:
        others = [each for each in words.things if each != thing]
        figures += (Figure(_pick(others, second), _colour(words, *draws[8:11])),)
        if kind >= chances.beside + chances.above:
            relation = "in front of"
        elif kind >= chances.beside:
            relation = "above"
        size = "small"
    elif kind < pairs + chances.counted and thing not in words.uncounted:
        count = 2 + int(second * (MAX_COUNT - 1))
        size = "small"
    else:
        size = _size(chances, draws[11])
        if size in ("small", "tiny") and draws[12] < chances.placed:
            place = _pick(PLACES[1:], draws[9])
        if draws[13] < chances.posed and size != "big" and thing not in words.never_posed:
            pose = _pick(POSES[1:], draws[10])
    return Attributes(
        figures=figures,
        style=_pick(words.styles, style),
        background=_background(words, any(each.colour != NATURAL for each in figures), *draws[14:17]),
        size=size,
        offset=_offset(words, figures, count, relation, size, place, draws[17:20]),
        count=count,
        relation=relation,
        place=place,
        pose=pose,
        variant=int(varied * _VARIANTS),
    )


def _size(chances: Chances, draw: float) -> Size:
    for size, share in (("tiny", chances.tiny), ("small", chances.small), ("big", chances.big)):
        draw -= share
        if draw < 0:
            return size  # type: ignore[return-value]
    return "usual"


def _colour(words: Vocabulary, tinted: float, shaded: float, hue: float) -> str:
    if tinted >= words.chances.tinted:
        return NATURAL
    return _pick(words.shades if shaded < words.chances.shaded and words.shades else words.colours, hue)


def _background(words: Vocabulary, tinted: bool, drawn: float, kind: float, hue: float) -> str:
    chances = words.chances
    if drawn >= (chances.tinted_background if tinted else chances.natural_background):
        return PLAIN
    if kind < chances.scenic and words.scenes:
        return _pick(tuple(words.scenes), hue)
    if kind < chances.scenic + chances.patterned and words.patterns:
        pattern, rest = divmod(hue * len(words.patterns), 1)
        return f"{tuple(words.patterns)[int(pattern)]} {_pick(words.grounds, rest)}"
    return _pick(words.grounds, hue)


def _offset(
    words: Vocabulary,
    figures: tuple[Figure, ...],
    count: int,
    relation: Relation,
    size: Size,
    place: Place,
    draws: list[float],
) -> tuple[int, int]:
    """Returns a shift that keeps all figures inside the picture."""
    centred, right, down = draws
    if centred < words.chances.centred or count > 1 or size == "big":
        return (0, 0)
    if len(figures) == 2:
        step = _step(right, 8)
        return {"beside": (0, step), "above": (step, 0), "in front of": (0, 0)}[relation]
    if place != "middle":
        return (0, 0)
    reach = words.layout.step
    return (_step(right, reach), _step(down, reach))


def _step(draw: float, reach: int) -> int:
    return int(draw * (2 * reach + 1)) - reach


def _pick(words: Sequence[T], draw: float) -> T:
    return words[int(draw * len(words))]
