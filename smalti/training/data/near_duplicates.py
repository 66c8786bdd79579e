"""Near copies among pictures.

Two pictures are near copies if their difference hashes (`imagehash.dhash`) differ in few of 64 bits and their 16 x 16
thumbnails hardly differ in colour. The hash alone would take a red and a blue car for the same picture.
"""

from dataclasses import dataclass, field

import imagehash
import numpy as np
from jaxtyping import Int, UInt8, UInt64
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

MAX_HASH_DISTANCE = 6
"""Bits of 64."""
MAX_COLOUR_DISTANCE = 0.05
"""Root mean square difference of thumbnails, colours in [0, 1]."""
_THUMBNAIL = 16
_ROWS = 512
_PAIRS = 8192


@dataclass
class Fingerprints:
    """Fingerprints of many pictures, less than a kilobyte each."""

    _hashes: list[np.uint64] = field(default_factory=list)
    _thumbnails: list[UInt8[np.ndarray, "16 16 3"]] = field(default_factory=list)

    def add(self, picture: Image.Image) -> None:
        """Adds an RGB picture."""
        self._hashes.append(np.packbits(imagehash.dhash(picture).hash).view(np.uint64)[0])
        thumbnail = picture.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
        self._thumbnails.append(np.array(thumbnail))

    def clusters(
        self, farthest_hash: int = MAX_HASH_DISTANCE, farthest_colour: float = MAX_COLOUR_DISTANCE
    ) -> Int[np.ndarray, " pictures"]:
        """Returns the cluster of each picture; near copies, and near copies of those, share a cluster.

        All pairs are compared, which takes about a minute for 100,000 pictures.
        """
        count = len(self._hashes)
        if not count:
            return np.zeros(0, np.int64)
        first, second = near_pairs(
            np.array(self._hashes), np.stack(self._thumbnails), farthest_hash, farthest_colour
        )
        graph = coo_array((np.ones(len(first)), (first, second)), shape=(count, count))
        return connected_components(graph, directed=False)[1].astype(np.int64)


def near_pairs(
    hashes: UInt64[np.ndarray, " pictures"],
    thumbnails: UInt8[np.ndarray, "pictures side side 3"],
    farthest_hash: int = MAX_HASH_DISTANCE,
    farthest_colour: float = MAX_COLOUR_DISTANCE,
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Returns the indices of all pairs of near copies, the smaller index first."""
    firsts, seconds = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for start in range(0, len(hashes), _ROWS):
        bits = np.bitwise_count(hashes[start : start + _ROWS, None] ^ hashes[None, start:])
        first, second = np.nonzero(np.triu(bits <= farthest_hash, k=1))
        for pairs in range(0, len(first), _PAIRS):
            left, right = first[pairs : pairs + _PAIRS] + start, second[pairs : pairs + _PAIRS] + start
            difference = thumbnails[left].astype(np.float32) - thumbnails[right]
            error = np.sqrt((difference**2).mean(axis=(1, 2, 3))) / 255
            firsts.append(left[error < farthest_colour])
            seconds.append(right[error < farthest_colour])
    return np.concatenate(firsts), np.concatenate(seconds)
