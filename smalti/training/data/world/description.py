"""The description of a world, `world.json`, and the models that check it.

A `WorldDescription` lists the things, their styles, colours, backgrounds and sizes, and the combinations that training
never sees. It has no pictures; `smalti.training.data.world.sprites` makes them from it.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from smalti.training.checked_files import check_fields, load_json
from smalti.validation import Strict

NATURAL = "natural"
"""The colour of a thing that keeps its own colours."""
PLAIN = "white"
"""The background that a caption may leave out."""
SHIPPED = Path(__file__).with_name("world.json")

Channel = Annotated[int, Field(ge=0, le=255)]
Rgb = tuple[Channel, Channel, Channel]
Share = Annotated[float, Field(ge=0, le=1)]


class Style(Strict):
    """A style in which all things are drawn: its word in captions, and the package of its pictures."""

    word: str
    package: str


class HeldOut(Strict):
    """The colour and the background that training never combines with a thing."""

    colour: str
    background: str


class Thing(Strict):
    """A thing of the world: its word in captions, its label in emojibase, and other words for it."""

    word: str
    label: str
    also: tuple[str, ...] = ()
    plural: bool = False
    held_out: HeldOut


class Layout(Strict):
    """Lengths in pixels of a picture of 64; they are scaled for other resolutions."""

    big: int = Field(gt=0, le=64)
    small: int = Field(gt=0, le=32)
    big_step: int = Field(ge=0)
    """Step of a big figure, which lies in the middle or one step beside it."""
    small_step: int = Field(ge=0)
    """Step of a small figure, which lies in the middle or up to two steps beside it."""

    @model_validator(mode="after")
    def _stays_inside(self) -> "Layout":
        for name, side, reach in (
            ("big", self.big, self.big_step),
            ("small", self.small, 2 * self.small_step),
        ):
            if reach > (64 - side) // 2:
                raise ValueError(
                    f"{name}_step: must keep a {name} figure inside the picture; make it smaller"
                )
        return self


class Chances(Strict):
    """Probability of each kind of picture.

    `tinted` is the share of things in a tint instead of their own colours. `tinted_background` and
    `natural_background` are the shares of pictures with a coloured background, with and without a tinted thing.
    """

    pair: Share
    small: Share
    tinted: Share
    tinted_background: Share
    natural_background: Share
    centred: Share


class Pictograms(Strict):
    """Splits of the set of all named pictograms."""

    held_out_names: Share
    """Share of the names that are held out in all styles."""
    validation: Share
    """Share of the other pictures that are held out for validation."""


class WorldDescription(Strict):
    """Content of a `world.json`; things and styles are in the order of the sprites."""

    styles: tuple[Style, ...] = Field(min_length=1)
    colours: dict[str, Rgb] = Field(min_length=1)
    backgrounds: dict[str, Rgb] = Field(min_length=1)
    smallest_contrast: float = Field(ge=0)
    layout: Layout
    chances: Chances
    pictograms: Pictograms
    synonyms: dict[str, str] = Field(default_factory=dict)
    """Other words for colours, sizes, styles and the rest of the captions, each with the known word."""
    not_synonyms: tuple[str, ...] = ()
    """Keywords of the packages that are not words for a thing, such as "pretty" of the butterfly."""
    things: tuple[Thing, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _names_exist(self) -> "WorldDescription":
        things, styles = [thing.word for thing in self.things], [style.word for style in self.styles]
        for kind, words in (("thing", things), ("style", styles)):
            for word in words:
                if words.count(word) > 1:
                    raise ValueError(f"{kind}s: {word!r} must be listed only once")
        if PLAIN in self.backgrounds:
            raise ValueError(f"backgrounds: {PLAIN!r} always exists and must not be listed")
        if NATURAL in self.colours:
            raise ValueError(f"colours: {NATURAL!r} always exists and must not be listed")
        for thing in self.things:
            if thing.held_out.colour not in self.colours:
                raise ValueError(
                    f"{thing.word!r} holds out {thing.held_out.colour!r}, which must be one of the colours"
                )
            if thing.held_out.background not in self.backgrounds:
                raise ValueError(
                    f"{thing.word!r} holds out {thing.held_out.background!r}, which must be one of the backgrounds"
                )
        return self


def load_description(path: Path = SHIPPED) -> WorldDescription:
    """Loads and checks a `world.json`.

    Raises:
        InvalidInputError: the file cannot be read or is not valid JSON, or has an unknown key or a wrong value.
    """
    return check_fields(path, WorldDescription, load_json(path))
