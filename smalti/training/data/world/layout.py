"""Where the figures of a picture are drawn, in pixels of a picture of 64."""

import math
from typing import NamedTuple

from smalti.training.data.world.attributes import Attributes, Place, Pose
from smalti.training.data.world.description import Layout, Size

REFERENCE = 64
GROUND_VARIANTS = 4
"""Number of different pictures of a pattern or scene."""
_MIDDLE = REFERENCE / 2
_MARGIN = 3
"""Distance of a figure in a corner from the edges."""
_STEPS: dict[Place, tuple[int, int]] = {
    "middle": (0, 0),
    "top": (0, -1),
    "bottom": (0, 1),
    "left": (-1, 0),
    "right": (1, 0),
    "top left": (-1, -1),
    "top right": (1, -1),
    "bottom left": (-1, 1),
    "bottom right": (1, 1),
}
_POSE_TURNS: dict[Pose, int] = {"upright": 0, "upside down": 180, "tilted left": 25, "tilted right": -25}
# One of these is chosen by bits; the first ones are those of variant 0.
_SMALL_TURNS = (0,) * 14 + (6, -6)
_SHIFTS = (0, 1, -1, 0)
# Centres of the copies in each arrangement, with their size.
_ARRANGEMENTS: dict[int, tuple[tuple[Size | None, tuple[tuple[int, int], ...]], ...]] = {
    2: (
        ("small", ((16, 32), (48, 32))),
        ("small", ((16, 19), (48, 45))),
        ("small", ((16, 45), (48, 19))),
        ("small", ((32, 16), (32, 48))),
    ),
    3: (
        (None, ((32, 17), (17, 47), (47, 47))),
        (None, ((17, 17), (47, 17), (32, 47))),
        ("tiny", ((11, 32), (32, 32), (53, 32))),
        (None, ((17, 17), (47, 20), (18, 47))),
    ),
    4: (
        (None, ((17, 17), (47, 17), (17, 47), (47, 47))),
        (None, ((17, 17), (47, 17), (17, 47), (47, 47))),
        ("tiny", ((32, 11), (11, 32), (53, 32), (32, 53))),
        (None, ((16, 20), (47, 16), (17, 49), (48, 45))),
    ),
}
_FRONT_PLACES = ((0, 14), (12, 14), (-12, 14), (0, 14))
"""Shift of the figure in front, which covers a part of the figure behind it."""
_BEHIND_SHIFT = -6


class Placement(NamedTuple):
    """Where and how one figure is drawn."""

    figure: int
    """Index of the figure; copies share one."""
    side: int
    right: float
    """Centre, from the left edge."""
    down: float
    turn: int = 0
    """Turn to the left, in degrees."""
    mirrored: bool = False


def lay_out(attributes: Attributes, layout: Layout) -> list[Placement]:
    """Returns where the figures are drawn, in the order in which they are drawn."""
    variant = attributes.variant
    right, down = attributes.offset
    if attributes.is_pair:
        spots = _pair_spots(attributes, layout)
    elif attributes.count > 1:
        arrangements = _ARRANGEMENTS[attributes.count]
        size, centres = arrangements[_bits(variant, 9) % len(arrangements)]
        side = getattr(layout, size or "few")
        spots = [(0, side, x, y) for x, y in centres]
    else:
        side = getattr(layout, attributes.size)
        reach = _MIDDLE - side / 2 - _MARGIN if attributes.place != "middle" else 0
        across, along = _STEPS[attributes.place]
        spots = [(0, side, _MIDDLE + across * reach, _MIDDLE + along * reach)]
    placements = []
    for index, (figure, side, x, y) in enumerate(spots):
        bits = _bits(variant, index)
        jitter = len(spots) > 1
        # A figure that fills the picture has no room to turn.
        free = attributes.size != "big" or len(spots) > 1
        turn = _POSE_TURNS[attributes.pose] + (_SMALL_TURNS[bits >> 1 & 15] if free else 0)
        x += right + (_SHIFTS[bits >> 5 & 3] if jitter else 0)
        y += down + (_SHIFTS[bits >> 7 & 3] if jitter else 0)
        reach = _MIDDLE - side / 2 * _growth(turn)
        x, y = (
            _MIDDLE + min(max(each - _MIDDLE, -reach), reach) if reach > 0 else _MIDDLE for each in (x, y)
        )
        placements.append(Placement(figure, side, x, y, turn, bool(bits & 1)))
    return placements


def ground_variant(variant: int) -> int:
    """Returns which picture of a pattern or scene a variant has."""
    return _bits(variant, 10) % GROUND_VARIANTS


def _pair_spots(attributes: Attributes, layout: Layout) -> list[tuple[int, int, float, float]]:
    side = layout.small
    if attributes.relation == "beside":
        return [(0, side, 16, _MIDDLE), (1, side, 48, _MIDDLE)]
    if attributes.relation == "above":
        return [(0, side, _MIDDLE, 16), (1, side, _MIDDLE, 48)]
    across, along = _FRONT_PLACES[_bits(attributes.variant, 9) % len(_FRONT_PLACES)]
    return [
        (1, layout.usual, _MIDDLE, _MIDDLE + _BEHIND_SHIFT),
        (0, side, _MIDDLE + across, _MIDDLE + along),
    ]


def _growth(turn: int) -> float:
    """Returns by how much the square around a figure grows when it turns."""
    angle = math.radians(turn)
    return abs(math.cos(angle)) + abs(math.sin(angle))


def _bits(variant: int, index: int) -> int:
    """Returns bits that are independent for each index, and 0 for variant 0."""
    if not variant:
        return 0
    mixed = (variant * 0x9E3779B1 + index * 0x85EBCA6B) & 0xFFFFFFFF
    mixed = ((mixed ^ mixed >> 15) * 0x2C1B3C6D) & 0xFFFFFFFF
    return mixed >> 8
