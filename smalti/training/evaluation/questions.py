"""The fixed prompts of an evaluation, each with what the picture must show.

There are two sets. The sheets, which people look at, show the 24 prompts of `sheet_prompts.toml`. The shares are
counted over many more prompts, which are drawn from the world: the same world gives the same prompts, and a longer
list starts with the shorter one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from smalti.errors import InvalidInputError
from smalti.training.batches.random_numbers import generator_at
from smalti.training.checked_files import check_fields, load_toml
from smalti.training.data.world.attributes import Attributes, Figure
from smalti.training.data.world.captions import usual_caption
from smalti.training.data.world.composition import World
from smalti.training.data.world.description import NATURAL, PLAIN, HeldOut, Size, base_colour
from smalti.validation import Strict

SHEET_PROMPTS = Path(__file__).with_name("sheet_prompts.toml")
PromptKind = Literal["natural", "seen", "held_out_colour", "held_out_background", "pairs"]
PROMPT_KINDS: tuple[PromptKind, ...] = get_args(PromptKind)
_MAX_ATTEMPTS = 1000


@dataclass(frozen=True)
class Question:
    """A prompt, and what its picture must show."""

    prompt: str
    figures: tuple[Figure, ...]
    """One figure, or two from left to right."""
    background: str
    size: Size = "usual"


class _Described(Strict):
    """A prompt of the file, by what its picture must show."""

    things: tuple[str, ...]
    colours: tuple[str, ...]
    """Colour of each thing; "natural" for its own colours."""
    background: str = PLAIN
    size: Size = "usual"


class _SheetPrompts(Strict):
    seen: tuple[_Described, ...]
    held_out: tuple[_Described, ...]


def ask(world: World, figures: tuple[Figure, ...], background: str = PLAIN, size: Size = "usual") -> Question:
    """Makes a prompt in the form that most captions have.

    Raises:
        InvalidInputError: the world lacks the thing, colour or background.
    """
    for figure in figures:
        _require(figure.thing, world.things, "thing")
        _require(figure.colour, world.colours, "colour")
    _require(background, world.backgrounds, "background")
    prompt = usual_caption(Attributes(figures, world.styles[0], background, size), world.vocabulary)
    return Question(prompt, figures, background, size)


def questions(world: World, kind: PromptKind, count: int) -> list[Question]:
    """Returns the first prompts of a kind.

    Args:
        world: the world of the model.
        kind: "natural": a thing in its own colours on white. "seen": a colour, a background or both that training
            combines with the thing. "held_out_colour", "held_out_background": one that it never combines with it, half
            of the time together with a background or colour that it does. "pairs": two things, in combinations that
            training has.
        count: number of prompts; things are repeated if there are fewer.
    """
    numbers = generator_at(PROMPT_KINDS.index(kind), 27, 0)
    order = numbers.permutation(len(world.things))
    return [_one(world, kind, world.things[order[index % len(order)]], index) for index in range(count)]


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
    # Some things have a held-out style, which a prompt leaves open.
    aspects = world.held_out_aspects(Attributes(question.figures, world.styles[0], question.background))
    return bool(aspects - {"style"})


def _described(world: World, described: _Described) -> Question:
    figures = tuple(map(Figure, described.things, described.colours))
    return ask(world, figures, described.background, described.size)


def _one(world: World, kind: PromptKind, thing: str, index: int) -> Question:
    numbers = generator_at(PROMPT_KINDS.index(kind), 28, index)
    held_out = _held_out(world)[thing]
    for attempt in range(_MAX_ATTEMPTS):
        # A white thing does not stand out from white, so the other aspect is drawn as well if it must be.
        both = index % 2 or attempt
        colour, background = NATURAL, PLAIN
        if kind == "seen":
            # A colour, a background, or both.
            choice = index % 3
            colour = _pick(numbers, world.colours[1:]) if choice != 1 else NATURAL
            background = _pick(numbers, world.plain_backgrounds[1:]) if choice != 0 else PLAIN
        elif kind == "held_out_colour":
            colour = held_out.colour
            background = _pick(numbers, world.plain_backgrounds[1:]) if both else PLAIN
        elif kind == "held_out_background":
            background = held_out.background
            colour = _pick(numbers, world.colours[1:]) if both else NATURAL
        figures: tuple[Figure, ...] = (Figure(thing, colour),)
        if kind == "pairs":
            others = [other for other in world.things if other != thing]
            figures = tuple(
                Figure(each, _pick(numbers, world.colours[1:]) if numbers.random() < 0.5 else NATURAL)
                for each in (thing, _pick(numbers, others))
            )
            background = _pick(numbers, world.plain_backgrounds[1:]) if index % 3 == 2 else PLAIN
        question = ask(world, figures, background, "small" if kind == "pairs" else "usual")
        if _stands_out(world, question) and _is_of(world, question, kind):
            return question
    raise InvalidInputError(
        "world", f"has no prompt of the kind {kind!r} for {thing!r}; hold out fewer combinations"
    )


def _is_of(world: World, question: Question, kind: PromptKind) -> bool:
    """Returns whether exactly what the kind names is held out."""
    held_out = [_held_out(world)[figure.thing] for figure in question.figures]
    colours = [
        base_colour(figure.colour) == held.colour
        for figure, held in zip(question.figures, held_out, strict=True)
    ]
    grounds = [question.background == held.background for held in held_out]
    return (any(colours), any(grounds)) == (kind == "held_out_colour", kind == "held_out_background")


def _held_out(world: World) -> dict[str, HeldOut]:
    return {thing.word: thing.held_out for thing in world.description.things}


def _stands_out(world: World, question: Question) -> bool:
    """Returns whether the things stand out in at least half of the styles that draw them."""
    drawings = [
        Attributes(question.figures, style, question.background, question.size)
        for style in world.styles
        if all(world.is_drawn(figure.thing, style) for figure in question.figures)
    ]
    return 2 * sum(map(world.is_visible, drawings)) >= len(drawings)


def _pick(numbers: np.random.Generator, words: Any) -> str:
    return str(words[int(numbers.integers(len(words)))])


def _require(word: str, known: tuple[str, ...], what: str) -> None:
    if word not in known:
        raise InvalidInputError("prompts", f"{word!r} must be a {what} of the world")
