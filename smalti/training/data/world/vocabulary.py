"""The words of a world, as its pictures and captions use them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from smalti.training.data.world.attributes import Attributes
from smalti.training.data.world.description import Chances, Layout, WorldDescription


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The words of a world as attributes and captions use them."""

    things: tuple[str, ...]
    styles: tuple[str, ...]
    colours: tuple[str, ...]
    shades: tuple[str, ...]
    grounds: tuple[str, ...]
    """Plain colours of backgrounds, without white."""
    patterns: Mapping[str, str]
    """Noun of each pattern."""
    scenes: Mapping[str, tuple[str, ...]]
    """Wordings of each scene."""
    plurals: Mapping[str, str]
    """Plural of each thing that is counted."""
    uncounted: frozenset[str]
    """Things that take no article and are never counted."""
    never_mirrored: frozenset[str]
    never_posed: frozenset[str]
    layout: Layout
    chances: Chances

    @classmethod
    def of(cls, description: WorldDescription) -> Self:
        """Returns the words of a description."""
        return cls(
            things=tuple(thing.word for thing in description.things),
            styles=tuple(style.word for style in description.styles),
            colours=tuple(description.colours),
            shades=tuple(description.shades),
            grounds=tuple(description.backgrounds),
            patterns={str(pattern): noun for pattern, noun in description.patterns.items()},
            scenes={name: scene.phrases for name, scene in description.scenes.items()},
            plurals={
                thing.word: thing.many or plural_of(thing.word)
                for thing in description.things
                if not thing.plural
            },
            uncounted=frozenset(thing.word for thing in description.things if thing.plural),
            never_mirrored=frozenset(description.never_mirrored),
            never_posed=frozenset(description.never_posed),
            layout=description.layout,
            chances=description.chances,
        )

    def allows(self, attributes: Attributes) -> bool:
        """Returns whether things may be shown like this: different ones, counted, in a pose."""
        things = [figure.thing for figure in attributes.figures]
        return (
            len(set(things)) == len(things)
            and (attributes.count == 1 or things[0] in self.plurals)
            and (attributes.pose == "upright" or things[0] not in self.never_posed)
        )


def plural_of(word: str) -> str:
    """Returns the regular plural of a word."""
    if word.endswith("man"):
        return word[:-3] + "men"
    if word.endswith("f"):
        return word[:-1] + "ves"
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"
