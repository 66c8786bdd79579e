"""Views: the parts of a picture that a judge looks at, one figure at a time."""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from jaxtyping import UInt8

from smalti.training.data.world.description import Relation

Region = Literal["whole", "left", "right", "top", "bottom", "front"]
"""Part of a picture that a judge looks at."""
REGIONS: tuple[Region, ...] = get_args(Region)

_PARTS = 16
_BOXES: Mapping[Region, tuple[slice, slice]] = {
    "whole": (slice(0, 16), slice(0, 16)),
    "left": (slice(0, 16), slice(0, 8)),
    "right": (slice(0, 16), slice(8, 16)),
    "top": (slice(0, 8), slice(0, 16)),
    "bottom": (slice(8, 16), slice(0, 16)),
    "front": (slice(7, 16), slice(0, 16)),
}
"""Rows and columns of each region, in sixteenths of a picture's side."""
PAIR_REGIONS: Mapping[Relation, tuple[Region, Region]] = {
    "beside": ("left", "right"),
    "above": ("top", "bottom"),
    # The figure behind is the largest of the picture, and most of it is in sight.
    "in front of": ("front", "whole"),
}
"""Where the first and the second of two figures are, for each relation."""

Picture = UInt8[np.ndarray, "side side 3"]


def view(picture: Picture, region: Region, like: Picture | None = None) -> Picture:
    """Returns the picture of one figure: the whole picture, or a region widened to a square by its background.

    Args:
        picture: the picture.
        region: what to look at.
        like: picture that says by what colour to widen; None for the picture itself.
    """
    if region == "whole":
        return picture
    part = picture[box(region, len(picture))]
    colour = ground_of(part if like is None else like[box(region, len(like))])
    widened = np.broadcast_to(colour, picture.shape).copy()
    widened[_middle(part, len(picture))] = part
    return widened


def paste(picture: Picture, changed: Picture, region: Region) -> Picture:
    """Returns a picture with a changed view put back; the widening is cut off."""
    if region == "whole":
        return changed
    result = picture.copy()
    part = result[box(region, len(picture))]
    part[...] = changed[_middle(part, len(picture))]
    return result


def box(region: Region, side: int) -> tuple[slice, slice]:
    """Returns the rows and columns of a region."""
    rows, columns = (
        slice(each.start * side // _PARTS, each.stop * side // _PARTS) for each in _BOXES[region]
    )
    return rows, columns


def ground_of(picture: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, " 3"]:
    """Returns the colour of the background: the median of the border."""
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    return np.median(border, axis=0).astype(np.uint8)


def _middle(part: UInt8[np.ndarray, "height width 3"], side: int) -> tuple[slice, slice]:
    top, left = (side - part.shape[0]) // 2, (side - part.shape[1]) // 2
    return slice(top, top + part.shape[0]), slice(left, left + part.shape[1])
