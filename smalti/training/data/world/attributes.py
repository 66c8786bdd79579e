"""Attributes of a composed picture: what it shows."""

from dataclasses import dataclass
from typing import Literal, get_args

from smalti.errors import InvalidInputError
from smalti.training.data.world.description import NATURAL, PLAIN, Relation, Size

Split = Literal["train", "validation", "held_out"]
SPLITS: tuple[Split, ...] = get_args(Split)
Place = Literal[
    "middle", "top", "bottom", "left", "right", "top left", "top right", "bottom left", "bottom right"
]
PLACES: tuple[Place, ...] = get_args(Place)
CORNERS: tuple[Place, ...] = ("top left", "top right", "bottom left", "bottom right")
Pose = Literal["upright", "upside down", "tilted left", "tilted right"]
POSES: tuple[Pose, ...] = get_args(Pose)


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
    """One figure, or two: from left to right, the upper and the lower one, or the front and the back one."""
    style: str
    background: str = PLAIN
    """A colour, a pattern with a colour ("striped blue"), or a scene ("beach")."""
    size: Size = "usual"
    """Size of a single figure. Copies and two figures have a size of their own; theirs counts as small."""
    offset: tuple[int, int] = (0, 0)
    """Shift of all figures to the right and down, in pixels of a picture of 64; never said."""
    count: int = 1
    """Number of copies of a single figure."""
    relation: Relation = "beside"
    """Relation of the first of two figures to the second."""
    place: Place = "middle"
    """Place of a single figure that is small or tiny."""
    pose: Pose = "upright"
    """Pose of a single figure."""
    variant: int = 0
    """Decides what a caption never says: mirroring, small turns and shifts, the arrangement of copies, and details of
    the background. 0 leaves all of this out."""

    @property
    def is_pair(self) -> bool:
        """Whether the picture shows two different things."""
        return len(self.figures) == 2
