"""Attributes of a composed picture: what it shows."""

from dataclasses import dataclass
from typing import Literal, get_args

from smalti.errors import InvalidInputError
from smalti.training.data.world.description import NATURAL, PLAIN

Split = Literal["train", "validation", "held_out"]
SPLITS: tuple[Split, ...] = get_args(Split)
Size = Literal["big", "small"]
SIZES: tuple[Size, ...] = get_args(Size)


def check_split(name: str) -> Split:
    """Returns the split with this name.

    Raises:
        InvalidInputError: there is no such split.
    """
    for split in SPLITS:
        if split == name:
            return split
    raise InvalidInputError("split", f"must be one of {', '.join(SPLITS)}, not {name!r}")


@dataclass(frozen=True)
class Figure:
    """One thing in a picture."""

    thing: str
    colour: str = NATURAL


@dataclass(frozen=True)
class Attributes:
    """Everything that a picture shows: equal attributes give equal pictures."""

    figures: tuple[Figure, ...]
    """One figure, or two from left to right."""
    style: str
    background: str = PLAIN
    size: Size = "big"
    """Size of a single figure; two figures are always small."""
    offset: tuple[int, int] = (0, 0)
    """Shift of all figures to the right and down, in pixels of a picture of 64."""
