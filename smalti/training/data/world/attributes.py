"""What is on a composed picture."""

from dataclasses import dataclass
from typing import Literal, get_args

from smalti.errors import InvalidInputError
from smalti.training.data.world.description import NATURAL, PLAIN

Split = Literal["train", "validation", "held_out"]
SPLITS: tuple[Split, ...] = get_args(Split)
Size = Literal["big", "small"]
SIZES: tuple[Size, ...] = get_args(Size)


def check_split(name: str) -> Split:
    """Returns the split of that name.

    Raises:
        InvalidInputError: there is none.
    """
    for split in SPLITS:
        if split == name:
            return split
    raise InvalidInputError("split", f"{name!r} is not one of {', '.join(SPLITS)}")


@dataclass(frozen=True)
class Figure:
    """One thing on a picture."""

    thing: str
    colour: str = NATURAL


@dataclass(frozen=True)
class Attributes:
    """What is on a picture, whole: equal attributes are equal pictures."""

    figures: tuple[Figure, ...]
    """One, or two from left to right."""
    style: str
    background: str = PLAIN
    size: Size = "big"
    """Of a single figure; two figures share a picture as "small"."""
    offset: tuple[int, int] = (0, 0)
    """How far to the right and down of its usual place the whole lies, in pixels of a picture of 64."""
