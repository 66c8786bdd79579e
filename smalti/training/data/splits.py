"""Splits that depend on the pictures and not on their order, so that new pictures move no old ones."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from smalti.errors import InvalidInputError


def share_of(seed: int, key: str) -> float:
    """Hashes a key to a number in [0, 1), uniformly, and with the same result on every machine."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def choose(shares: Mapping[str, float], number: float) -> str:
    """Returns the split that a number in [0, 1) falls into; the remainder of the shares is "train"."""
    for split, share in shares.items():
        number -= share
        if number < 0:
            return split
    return "train"


def split_clusters(
    clusters: Int[np.ndarray, " pictures"],
    keys: Sequence[str],
    shares: Mapping[str, float],
    seed: int = 0,
) -> list[str]:
    """Assigns a split to each picture, the same one to near copies.

    Args:
        clusters: cluster of each picture.
        keys: a stable name of each picture, such as a digest of its pixels.
        shares: share of each split other than "train", in [0, 1].
        seed: seed of the assignment.
    """
    smallest: dict[int, str] = {}
    for cluster, key in zip(clusters.tolist(), keys, strict=True):
        smallest[cluster] = min(key, smallest.get(cluster, key))
    chosen = {cluster: choose(shares, share_of(seed, key)) for cluster, key in smallest.items()}
    return [chosen[cluster] for cluster in clusters.tolist()]


def refuse_empty(splits: Sequence[str], expected: Sequence[str]) -> None:
    """Checks that every split has a picture.

    Raises:
        InvalidInputError: a split is empty.
    """
    counts = Counter(splits)
    for split in expected:
        if not counts[split]:
            raise InvalidInputError(
                split,
                f"none of {len(splits)} pictures is in this split; give more, or set a larger share",
            )
