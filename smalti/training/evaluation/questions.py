"""What a model is asked to draw when it is measured: fixed prompts, each with what must be on the picture.

There are two sets. The sheets show 24 prompts, listed in `sheet_prompts.toml`, to be looked at. The shares are
counted over many more, drawn from the world: the same world gives the same prompts, and more of them begin with the
same ones.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import ValidationError

from smalti.errors import InvalidInputError
from smalti.text.vocabulary import article
from smalti.training.data.world.attributes import Attributes, Figure, Size
from smalti.training.data.world.composition import World
from smalti.training.data.world.description import NATURAL, PLAIN, HeldOut, problem_of
from smalti.validation import Strict

SHEET_PROMPTS = Path(__file__).with_name("sheet_prompts.toml")
Kind = Literal["natural", "seen", "held_out_colour", "held_out_background", "pairs"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_MAX_ATTEMPTS = 1000


@dataclass(frozen=True)
class Question:
    """A prompt, and what a picture of it must show."""

    prompt: str
    figures: tuple[Figure, ...]
    """One, or two from left to right."""
    background: str
    size: Size = "big"


class _Described(Strict):
    """A prompt of the file, by what it asks for."""

    things: tuple[str, ...]
    colours: tuple[str, ...]
    """For each thing its colour; "natural" for its own."""
    background: str = PLAIN
    size: Size = "big"


class _SheetPrompts(Strict):
    seen: tuple[_Described, ...]
    held_out: tuple[_Described, ...]


def ask(world: World, figures: tuple[Figure, ...], background: str = PLAIN, size: Size = "big") -> Question:
    """Makes the prompt in the form that most captions have.

    Raises:
        InvalidInputError: the world has no such thing, colour or background.
    """
    for figure in figures:
        _require(figure.thing, world.things, "thing")
        _require(figure.colour, world.colours, "colour")
    _require(background, world.backgrounds, "background")
    small = size == "small" and len(figures) == 1
    text = " and ".join(_noun(world, figure, small) for figure in figures)
    if background != PLAIN:
        text += f" on {article(background)} {background} background"
    return Question(text, figures, background, size)


def questions(world: World, kind: Kind, count: int) -> list[Question]:
    """Returns the first prompts of a kind.

    Args:
        world: what can be drawn.
        kind: "natural": a thing in its own colours on white. "seen": a colour, a background or both that training
            combines. "held_out_colour", "held_out_background": what it never combines, the other left as it is, or
            seen. "pairs": two things whose combinations it has seen.
        count: how many; things come again when there are fewer.
    """
    numbers = np.random.Generator(np.random.Philox(key=(KINDS.index(kind), 27)))
    order = numbers.permutation(len(world.things))
    return [_one(world, kind, world.things[order[index % len(order)]], index) for index in range(count)]


def sheet_questions(world: World, path: Path = SHEET_PROMPTS) -> dict[str, list[Question]]:
    """Reads the prompts of the sheets: "seen" and "held_out".

    Raises:
        InvalidInputError: the file cannot be used, or a prompt is not on the side where it stands.
    """
    try:
        described = _SheetPrompts.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInputError(str(path), f"cannot be read as TOML ({error})") from None
    except ValidationError as error:
        raise problem_of(path, error) from None
    sides: dict[str, list[Question]] = {}
    for side in ("seen", "held_out"):
        sides[side] = [_described(world, each) for each in getattr(described, side)]
        for question in sides[side]:
            if _is_held_out(world, question) != (side == "held_out"):
                raise InvalidInputError(str(path), f"{question.prompt!r} does not belong to {side!r}")
    return sides


def _described(world: World, described: _Described) -> Question:
    figures = tuple(map(Figure, described.things, described.colours))
    return ask(world, figures, described.background, described.size)


def _one(world: World, kind: Kind, thing: str, index: int) -> Question:
    numbers = np.random.Generator(np.random.Philox(key=(KINDS.index(kind), 28), counter=(0, 0, 0, index)))
    held_out = _held_out(world)[thing]
    for _ in range(_MAX_ATTEMPTS):
        colour, background = NATURAL, PLAIN
        if kind == "seen":
            # A colour, a background, or both.
            choice = index % 3
            colour = _pick(numbers, world.colours[1:]) if choice != 1 else NATURAL
            background = _pick(numbers, world.backgrounds[1:]) if choice != 0 else PLAIN
        elif kind == "held_out_colour":
            colour = held_out.colour
            background = _pick(numbers, world.backgrounds[1:]) if index % 2 else PLAIN
        elif kind == "held_out_background":
            background = held_out.background
            colour = _pick(numbers, world.colours[1:]) if index % 2 else NATURAL
        figures: tuple[Figure, ...] = (Figure(thing, colour),)
        if kind == "pairs":
            others = [other for other in world.things if other != thing]
            figures = tuple(
                Figure(each, _pick(numbers, world.colours[1:]) if numbers.random() < 0.5 else NATURAL)
                for each in (thing, _pick(numbers, others))
            )
            background = _pick(numbers, world.backgrounds[1:]) if index % 3 == 2 else PLAIN
        question = ask(world, figures, background, "small" if kind == "pairs" else "big")
        if _stands_out(world, question) and _is_of(world, question, kind):
            return question
    raise InvalidInputError("world", f"no prompt of the kind {kind!r} was found for {thing!r}")


def _is_of(world: World, question: Question, kind: Kind) -> bool:
    """Says whether just what the kind says is held out."""
    held_out = [_held_out(world)[figure.thing] for figure in question.figures]
    colours = [figure.colour == held.colour for figure, held in zip(question.figures, held_out, strict=True)]
    grounds = [question.background == held.background for held in held_out]
    return (any(colours), any(grounds)) == (kind == "held_out_colour", kind == "held_out_background")


def _held_out(world: World) -> dict[str, HeldOut]:
    return {thing.word: thing.held_out for thing in world.description.things}


def _is_held_out(world: World, question: Question) -> bool:
    return world.is_held_out(Attributes(question.figures, world.styles[0], question.background))


def _stands_out(world: World, question: Question) -> bool:
    return all(
        world.is_visible(Attributes(question.figures, style, question.background, question.size))
        for style in world.styles
    )


def _noun(world: World, figure: Figure, small: bool) -> str:
    colour = "" if figure.colour == NATURAL else figure.colour
    noun = " ".join(word for word in ("small" if small else "", colour, figure.thing) if word)
    return noun if figure.thing in world.plurals else f"{article(noun)} {noun}"


def _pick(numbers: np.random.Generator, words: Any) -> str:
    return str(words[int(numbers.integers(len(words)))])


def _require(word: str, known: tuple[str, ...], what: str) -> None:
    if word not in known:
        raise InvalidInputError("prompts", f"the world has no {what} {word!r}")
