"""Sample sheets: many pictures in one image, from which people judge a run."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_COLUMNS = 16
_GAP = 2
_GRAY = 96


def sheet(pictures: UInt8[np.ndarray, "pictures height width 3"], columns: int = _COLUMNS) -> Image.Image:
    """Arranges pictures in rows."""
    height, width = pictures.shape[1:3]
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), _GRAY, np.uint8)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        top, left = row * (height + _GAP) + _GAP, column * (width + _GAP) + _GAP
        canvas[top : top + height, left : left + width] = picture
    return Image.fromarray(canvas)


def compare(
    above: UInt8[np.ndarray, "pictures height width 3"], below: UInt8[np.ndarray, "pictures height width 3"]
) -> Image.Image:
    """Arranges pictures in rows, each row of `above` over the corresponding row of `below`."""
    rows: Sequence[np.ndarray] = [
        pictures[start : start + _COLUMNS]
        for start in range(0, len(above), _COLUMNS)
        for pictures in (above, below)
    ]
    return sheet(np.concatenate(rows), min(_COLUMNS, len(above)))
