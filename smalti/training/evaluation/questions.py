"""The fixed prompts of an evaluation, each with what the picture must show.

There are two sets. The sheets, which people look at, show the 24 prompts of `sheet_prompts.toml`. The shares are
counted over many more prompts, which are drawn from the world: the same world gives the same prompts, and a longer
list starts with the shorter one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import Field

from smalti.errors import InvalidInputError
from smalti.training.batches.random_numbers import generator_at
from smalti.training.checked_files import check_fields, load_toml
from smalti.training.data.world.attributes import Attributes, Figure
from smalti.training.data.world.captions import usual_caption
from smalti.training.data.world.composition import World
from smalti.training.data.world.description import (
    MAX_COUNT,
    NATURAL,
    PLAIN,
    RELATIONS,
    HeldOut,
    Relation,
    Size,
)
from smalti.validation import Strict

SHEET_PROMPTS = Path(__file__).with_name("sheet_prompts.toml")
PromptKind = Literal[
    "natural",
    "seen",
    "held_out_colour",
    "held_out_background",
    "pairs",
    "relations",
    "counts",
    "held_out_pairs",
    "held_out_relations",
    "held_out_counts",
]
PROMPT_KINDS: tuple[PromptKind, ...] = get_args(PromptKind)
_HELD_OUT: Mapping[PromptKind, tuple[frozenset[str], ...]] = {
    "held_out_colour": (frozenset({"colour"}),),
    "held_out_background": (frozenset({"background"}),),
    "held_out_pairs": (frozenset({"colour"}), frozenset({"background"})),
    "held_out_relations": (frozenset({"relation"}),),
    "held_out_counts": (frozenset({"count"}),),
}
"""What exactly is held out in the prompts of a kind, as one of these sets; nothing in those of the other kinds."""
_MAX_ATTEMPTS = 1000


@dataclass(frozen=True)
class Question:
    """A prompt, and what its picture must show."""

    prompt: str
    figures: tuple[Figure, ...]
    """One figure, or two in the order of `Attributes.figures`."""
    background: str
    size: Size = "usual"
    count: int = 1
    """Number of copies of a single figure."""
    relation: Relation = "beside"
    """Relation of the first of two figures to the second."""

    def attributes(self, style: str) -> Attributes:
        """Returns the attributes of a picture in a style, with nothing that the prompt does not name."""
        return Attributes(
            self.figures, style, self.background, self.size, count=self.count, relation=self.relation
        )


class _Described(Strict):
    """A prompt of the file, by what its picture must show."""

    things: tuple[str, ...]
    colours: tuple[str, ...]
    """Colour of each thing; "natural" for its own colours."""
    background: str = PLAIN
    size: Size = "usual"
    count: int = Field(default=1, ge=1, le=MAX_COUNT)
    relation: Relation = "beside"


class _SheetPrompts(Strict):
    seen: tuple[_Described, ...]
    held_out: tuple[_Described, ...]


def ask(
    world: World,
    figures: tuple[Figure, ...],
    background: str = PLAIN,
    size: Size = "usual",
    count: int = 1,
    relation: Relation = "beside",
) -> Question:
    """Makes a prompt in the form that most captions have.

    Raises:
        InvalidInputError: the world lacks the thing, colour or background.
    """
    for figure in figures:
        _require(figure.thing, world.things, "thing")
        _require(figure.colour, world.colours, "colour")
    _require(background, world.backgrounds, "background")
    question = Question("", figures, background, size, count, relation)
    return replace(question, prompt=usual_caption(question.attributes(world.styles[0]), world.vocabulary))


def kinds_of(world: World) -> tuple[PromptKind, ...]:
    """Returns the kinds of prompts that a world has: not every world holds out counts or relations."""
    return tuple(kind for kind in PROMPT_KINDS if _things_for(world, kind))


def questions(world: World, kind: PromptKind, count: int) -> list[Question]:
    """Returns the first prompts of a kind that the world has.

    Args:
        world: the world of the model.
        kind: "natural": a thing in its own colours on white. "seen": a colour, a background or both that training
            combines with the thing. "held_out_colour", "held_out_background": one that it never combines with it, half
            of the time together with a background or colour that it does. "pairs": two things side by side.
            "relations": one above or in front of the other. "counts": one to four of a thing. "held_out_pairs": two
            things side by side, the first in its held-out colour or on its held-out background. "held_out_relations",
            "held_out_counts": a relation or number in which training never shows the thing.
        count: number of prompts; things are repeated if there are fewer.
    """
    things = _things_for(world, kind)
    order = generator_at(PROMPT_KINDS.index(kind), 27, 0).permutation(len(things))
    return [_one(world, kind, things[order[index % len(order)]], index) for index in range(count)]


def sheet_questions(world: World, path: Path = SHEET_PROMPTS) -> dict[str, list[Question]]:
    """Loads the prompts of the sheets: "seen" and "held_out".

    Raises:
        InvalidInputError: the file cannot be used, or a prompt is in the wrong set.
    """
    described = check_fields(path, _SheetPrompts, load_toml(path))
    sides: dict[str, list[Question]] = {}
    for side in ("seen", "held_out"):
        sides[side] = [_described(world, each) for each in getattr(described, side)]
        for question in sides[side]:
            if is_held_out(world, question) != (side == "held_out"):
                raise InvalidInputError(str(path), f"{side}: {question.prompt!r} belongs in the other set")
    return sides


def is_held_out(world: World, question: Question) -> bool:
    """Returns whether training never shows a combination that the prompt asks for."""
    return bool(_held_out_aspects(world, question))


def _described(world: World, described: _Described) -> Question:
    figures = tuple(map(Figure, described.things, described.colours))
    return ask(world, figures, described.background, described.size, described.count, described.relation)


def _things_for(world: World, kind: PromptKind) -> list[str]:
    """Returns the things that prompts of a kind are about."""
    held_out = _held_out(world)
    if kind == "counts":
        return [thing for thing in world.things if thing not in world.vocabulary.uncounted]
    if kind == "held_out_counts":
        return [thing for thing in world.things if held_out[thing].count]
    if kind == "held_out_relations":
        return [thing for thing in world.things if held_out[thing].relation]
    return list(world.things)


def _one(world: World, kind: PromptKind, thing: str, index: int) -> Question:
    numbers = generator_at(PROMPT_KINDS.index(kind), 28, index)
    held_out = _held_out(world)[thing]
    is_pair = kind in ("pairs", "relations", "held_out_pairs", "held_out_relations")
    for attempt in range(_MAX_ATTEMPTS):
        # Every second prompt names only what is held out, unless the thing would not stand out then.
        only = index % 2 == 0 and attempt == 0
        colour, background = NATURAL, PLAIN
        if kind == "seen":
            # A colour, a background, or both.
            choice = index % 3
            colour = _pick(numbers, world.colours[1:]) if choice != 1 else NATURAL
            background = _pick(numbers, world.plain_backgrounds[1:]) if choice != 0 else PLAIN
        elif kind == "held_out_colour":
            colour = held_out.colour
            background = PLAIN if only else _pick(numbers, world.plain_backgrounds[1:])
        elif kind == "held_out_background":
            background = held_out.background
            colour = NATURAL if only else _pick(numbers, world.colours[1:])
        elif kind != "natural":
            colour = _some_colour(world, numbers)
            plain = index % 3 != 2 and attempt < _MAX_ATTEMPTS // 2
            background = PLAIN if plain else _pick(numbers, world.plain_backgrounds[1:])
        if kind == "held_out_pairs":
            colour, background = (held_out.colour, background) if index % 2 else (colour, held_out.background)
        figures: tuple[Figure, ...] = (Figure(thing, colour),)
        if is_pair:
            others = [other for other in world.things if other != thing]
            figures += (Figure(_pick(numbers, others), _some_colour(world, numbers)),)
        count, relation = _arrangement(kind, held_out, index)
        size: Size = "small" if is_pair or count > 1 else "usual"
        if kind == "held_out_relations" and numbers.random() < 0.5:
            figures = figures[::-1]
        question = ask(world, figures, background, size, count, relation)
        if _stands_out(world, question) and _is_of(world, question, kind):
            return question
    raise InvalidInputError(
        "world", f"has no prompt of the kind {kind!r} for {thing!r}; hold out fewer combinations"
    )


def _arrangement(kind: PromptKind, held_out: HeldOut, index: int) -> tuple[int, Relation]:
    """Returns the number of copies and the relation of a prompt."""
    if kind == "counts":
        count = 1 + index % MAX_COUNT
        return count if count != held_out.count else 1 + count % MAX_COUNT, "beside"
    if kind == "held_out_counts":
        return held_out.count or 1, "beside"
    if kind == "relations":
        seen = [relation for relation in RELATIONS[1:] if relation != held_out.relation]
        return 1, seen[index % len(seen)]
    if kind == "held_out_relations":
        return 1, held_out.relation or "beside"
    return 1, "beside"


def _some_colour(world: World, numbers: np.random.Generator) -> str:
    return _pick(numbers, world.colours[1:]) if numbers.random() < 0.5 else NATURAL


def _is_of(world: World, question: Question, kind: PromptKind) -> bool:
    """Returns whether exactly what the kind names is held out."""
    return _held_out_aspects(world, question) in _HELD_OUT.get(kind, (frozenset(),))


def _held_out(world: World) -> dict[str, HeldOut]:
    return {thing.word: thing.held_out for thing in world.description.things}


def _held_out_aspects(world: World, question: Question) -> frozenset[str]:
    # Some things have a held-out style, which a prompt leaves open.
    return world.held_out_aspects(question.attributes(world.styles[0])) - {"style"}


def _stands_out(world: World, question: Question) -> bool:
    """Returns whether the things stand out in at least half of the styles that draw them."""
    drawings = [
        question.attributes(style)
        for style in world.styles
        if all(world.is_drawn(figure.thing, style) for figure in question.figures)
    ]
    return 2 * sum(map(world.is_visible, drawings)) >= len(drawings) > 0


def _pick(numbers: np.random.Generator, words: Any) -> str:
    return str(words[int(numbers.integers(len(words)))])


def _require(word: str, known: tuple[str, ...], what: str) -> None:
    if word not in known:
        raise InvalidInputError("prompts", f"{word!r} must be a {what} of the world")
