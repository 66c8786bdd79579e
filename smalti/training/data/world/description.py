"""The description of a world, `world.json`, and the models that check it.

A `WorldDescription` lists the things, their styles, colours, backgrounds and sizes, and the combinations that training
never sees. It has no pictures; `smalti.training.data.world.sprites` makes them from it.
"""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from smalti.training.checked_files import check_fields, load_json
from smalti.validation import Strict

NATURAL = "natural"
"""The colour of a thing that keeps its own colours."""
PLAIN = "white"
"""The background that a caption may leave out."""
SHIPPED = Path(__file__).with_name("world.json")

Size = Literal["usual", "big", "small", "tiny"]
SIZES: tuple[Size, ...] = get_args(Size)
Relation = Literal["beside", "above", "in front of"]
RELATIONS: tuple[Relation, ...] = get_args(Relation)
Pattern = Literal["striped", "dotted", "checked", "gradient"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
SceneName = Literal["sky", "meadow", "beach", "sea", "underwater", "snow", "desert", "sunset", "night"]
SCENES: tuple[SceneName, ...] = get_args(SceneName)
MAX_COUNT = 4
"""Largest number of copies of a thing in a picture."""

Channel = Annotated[int, Field(ge=0, le=255)]
Rgb = tuple[Channel, Channel, Channel]
Share = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(gt=0, le=64)]


class Credit(Strict):
    """Credit for the pictures of a package that does not state it in the form of Iconify."""

    title: str
    author: str
    source: str
    notice: str
    """Copyright line."""


class Style(Strict):
    """A style in which things are drawn: its word in captions, and the package of its pictures."""

    word: str
    package: str
    credit: Credit | None = None


class HeldOut(Strict):
    """What training never combines with a thing."""

    colour: str
    """A colour, with its light and dark shades."""
    background: str
    """A colour of the background, plain and with patterns."""
    kind: Pattern | SceneName | None = None
    """A pattern or a scene."""
    count: int | None = Field(default=None, ge=2, le=MAX_COUNT)
    relation: Relation | None = None
    """A relation in which the thing never stands, on either side."""
    style: str | None = None


class Thing(Strict):
    """A thing of the world: its word in captions, its label in emojibase, and other words for it."""

    word: str
    label: str
    also: tuple[str, ...] = ()
    plural: bool = False
    """Whether the word takes no "a", such as "grapes" or "bread". Such things are never counted."""
    many: str | None = None
    """The irregular plural of the word."""
    without: tuple[str, ...] = ()
    """Styles that do not draw the thing, or draw something else."""
    held_out: HeldOut


class Scene(Strict):
    """A scenic background."""

    phrases: tuple[str, ...] = Field(min_length=1)
    """Its wordings in captions; the first is the usual one."""
    colours: tuple[Rgb, ...] = Field(min_length=3, max_length=3)
    """Colours from which it is drawn; a thing stands out from all of them."""


class Layout(Strict):
    """Sides of figures in pixels of a picture of 64; they are scaled for other resolutions."""

    usual: Side
    big: Side
    small: Side
    """Also each of two things, and each of two copies."""
    few: Side
    """Each of three or four copies."""
    tiny: Side
    step: int = Field(ge=0)
    """Maximal shift of a figure of the usual size."""

    @model_validator(mode="after")
    def _stays_inside(self) -> "Layout":
        if self.step > (64 - self.usual) // 2:
            raise ValueError("step: must keep a figure of the usual size inside the picture; make it smaller")
        if not self.tiny < self.few <= self.small <= 30 < self.usual <= self.big:
            raise ValueError("must have tiny < few <= small <= 30 < usual <= big")
        return self


class Chances(Strict):
    """Probability of each kind of picture.

    `tinted` is the share of things in a tint instead of their own colours, and `shaded` that of light and dark shades
    among tints. `tinted_background` and `natural_background` are the shares of pictures with a background other than
    white, with and without a tinted thing; `patterned` and `scenic` are shares of these backgrounds. `placed` is the
    share of small and tiny things outside the middle, and `centred` the share of others exactly in the middle.
    """

    beside: Share
    above: Share
    front: Share
    counted: Share
    tinted: Share
    shaded: Share
    tinted_background: Share
    natural_background: Share
    patterned: Share
    scenic: Share
    big: Share
    small: Share
    tiny: Share
    placed: Share
    posed: Share
    centred: Share

    @model_validator(mode="after")
    def _add_up(self) -> "Chances":
        for names in (
            ("beside", "above", "front", "counted"),
            ("big", "small", "tiny"),
            ("patterned", "scenic"),
        ):
            if sum(getattr(self, name) for name in names) > 1:
                raise ValueError(f"{', '.join(names)}: must add up to at most 1")
        return self


class Pictograms(Strict):
    """Splits of the set of all named pictograms."""

    held_out_names: Share
    """Share of the names that are held out in all styles."""
    validation: Share
    """Share of the other pictures that are held out for validation."""


class WorldDescription(Strict):
    """Content of a `world.json`; things and styles are in the order of the sprites."""

    version: Literal[2]
    styles: tuple[Style, ...] = Field(min_length=1)
    colours: dict[str, Rgb] = Field(min_length=1)
    shades: dict[str, Rgb] = Field(default_factory=dict)
    """Light and dark colours of things, such as "dark green"; the last word is one of the colours."""
    backgrounds: dict[str, Rgb] = Field(min_length=1)
    patterns: dict[Pattern, str] = Field(default_factory=dict)
    """Patterns of coloured backgrounds, each with its noun, such as "stripes"."""
    scenes: dict[SceneName, Scene] = Field(default_factory=dict)
    smallest_contrast: float = Field(ge=0)
    layout: Layout
    chances: Chances
    pictograms: Pictograms
    synonyms: dict[str, str] = Field(default_factory=dict)
    """Other words for colours, sizes, styles and the rest of the captions, each with the known word."""
    not_synonyms: tuple[str, ...] = ()
    """Keywords of the packages that are not words for a thing, such as "pretty" of the butterfly."""
    never_mirrored: tuple[str, ...] = ()
    """Things with letters, figures or a dial."""
    never_posed: tuple[str, ...] = ()
    """Things without a clear upright position, of which no caption says that they are tilted or upside down."""
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
        for word in self.shades:
            if base_colour(word) not in self.colours or word in self.colours:
                raise ValueError(f"shades: {word!r} must end in one of the colours")
        for field in ("never_mirrored", "never_posed"):
            for word in getattr(self, field):
                if word not in things:
                    raise ValueError(f"{field}: {word!r} must be one of the things")
        for thing in self.things:
            self._check_thing(thing, styles)
        return self

    def _check_thing(self, thing: Thing, styles: list[str]) -> None:
        held_out = thing.held_out
        for value, known, noun in (
            (held_out.colour, self.colours, "colours"),
            (held_out.background, self.backgrounds, "backgrounds"),
            (held_out.kind, {*self.patterns, *self.scenes}, "patterns or scenes"),
            (held_out.style, styles, "styles"),
            *((style, styles, "styles") for style in thing.without),
        ):
            if value is not None and value not in known:
                verb = "is without" if value in thing.without else "holds out"
                raise ValueError(f"{thing.word!r} {verb} {value!r}, which must be one of the {noun}")
        if not set(styles) - {*thing.without, held_out.style}:
            raise ValueError(f"{thing.word!r} must keep at least one style")
        if held_out.count and thing.plural:
            raise ValueError(f"{thing.word!r} is never counted, so it must not hold out a count")


HELD_OUT_ASPECTS = {
    "colour": "colour",
    "background": "background",
    "kind": "pattern or scene",
    "count": "count",
    "relation": "relation",
    "style": "style",
}
"""What may be held out of a thing, each with its name in reports."""


def base_colour(colour: str) -> str:
    """Returns the colour of a light or dark shade: "green" for "dark green"."""
    return colour.rpartition(" ")[2]


def load_description(path: Path = SHIPPED) -> WorldDescription:
    """Loads and checks a `world.json`.

    Raises:
        InvalidInputError: the file cannot be read or is not valid JSON, or has an unknown key or a wrong value.
    """
    return check_fields(path, WorldDescription, load_json(path))
