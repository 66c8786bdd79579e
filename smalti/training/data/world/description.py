"""The world that the shipped model draws, as data: `world.json` and the models that check it.

A `WorldDescription` says which things there are, in which styles, colours, backgrounds and sizes they come,
and which combinations training never sees. It has no pictures; `smalti.training.data.world.sprites` makes them from it.
"""

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from smalti.errors import InvalidInputError
from smalti.validation import Strict, first_problem

NATURAL = "natural"
"""The colour of a thing that keeps its own colours."""
PLAIN = "white"
"""The background of a picture whose caption need not name one."""
SHIPPED = Path(__file__).with_name("world.json")

Channel = Annotated[int, Field(ge=0, le=255)]
Rgb = tuple[Channel, Channel, Channel]
Share = Annotated[float, Field(ge=0, le=1)]


class Style(Strict):
    """A hand that draws all things: the word captions use, and the package that holds its pictures."""

    word: str
    package: str


class HeldOut(Strict):
    """The combinations with one thing that training never sees."""

    colour: str
    background: str


class Thing(Strict):
    """A thing of the world: its word, its pictogram's name in emojibase, and what else people call it."""

    word: str
    label: str
    also: tuple[str, ...] = ()
    plural: bool = False
    held_out: HeldOut


class Layout(Strict):
    """Lengths in pixels of a picture of 64; other resolutions scale them."""

    big: int = Field(gt=0, le=64)
    small: int = Field(gt=0, le=32)
    big_step: int = Field(ge=0)
    """A big figure lies in the middle, or one such step beside it."""
    small_step: int = Field(ge=0)
    """Small ones lie in the middle, or up to two such steps beside it."""

    @model_validator(mode="after")
    def _stays_inside(self) -> "Layout":
        for name, side, reach in (
            ("big", self.big, self.big_step),
            ("small", self.small, 2 * self.small_step),
        ):
            if reach > (64 - side) // 2:
                raise ValueError(f"{name}_step moves a {name} figure out of the picture")
        return self


class Chances(Strict):
    """How often each kind of picture is drawn, each in [0, 1].

    Of the single things `tinted` have a colour; `tinted_background` and `natural_background` are the shares
    on a coloured background among the tinted and among the others.
    """

    pair: Share
    small: Share
    tinted: Share
    tinted_background: Share
    natural_background: Share
    centred: Share


class Pictograms(Strict):
    """How the set of all named pictograms is split."""

    held_out_names: Share
    """The share of names that training sees in no style."""
    validation: Share
    """The share of the other pictures that training does not see."""


class WorldDescription(Strict):
    """Everything that `world.json` says; the order of things and styles is the order of the sprites."""

    styles: tuple[Style, ...] = Field(min_length=1)
    colours: dict[str, Rgb] = Field(min_length=1)
    backgrounds: dict[str, Rgb] = Field(min_length=1)
    smallest_contrast: float = Field(ge=0)
    layout: Layout
    chances: Chances
    pictograms: Pictograms
    synonyms: dict[str, str] = Field(default_factory=dict)
    """Words for colours, sizes, styles and the rest of the captions, with the known word for each."""
    not_synonyms: tuple[str, ...] = ()
    """Keywords of the packages that stand for no thing, such as "pretty" of the butterfly."""
    things: tuple[Thing, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _names_exist(self) -> "WorldDescription":
        things, styles = [thing.word for thing in self.things], [style.word for style in self.styles]
        for kind, words in (("thing", things), ("style", styles)):
            for word in words:
                if words.count(word) > 1:
                    raise ValueError(f"the {kind} {word!r} stands twice")
        if PLAIN in self.backgrounds:
            raise ValueError(f"the background {PLAIN!r} is always there and must not be listed")
        if NATURAL in self.colours:
            raise ValueError(f"the colour {NATURAL!r} is always there and must not be listed")
        for thing in self.things:
            if thing.held_out.colour not in self.colours:
                raise ValueError(f"{thing.word!r} holds out {thing.held_out.colour!r}, which is no colour")
            if thing.held_out.background not in self.backgrounds:
                raise ValueError(
                    f"{thing.word!r} holds out {thing.held_out.background!r}, which is no background"
                )
        return self


def read_description(path: Path = SHIPPED) -> WorldDescription:
    """Reads and checks a `world.json`.

    Raises:
        InvalidInputError: the file cannot be read, is no JSON, has an unknown key or a wrong value.
    """
    try:
        return WorldDescription.model_validate(json.loads(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InvalidInputError(str(path), f"cannot be read as JSON ({error})") from None
    except ValidationError as error:
        raise problem_of(path, error) from None


def problem_of(path: Path, error: ValidationError) -> InvalidInputError:
    """Turns the first problem that pydantic found in a file into one line that names the key."""
    problem = first_problem(error)
    return InvalidInputError(f"{path}: {problem.field}" if problem.field else str(path), problem.message)
