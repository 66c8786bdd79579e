"""Splits that follow from the pictures, not from their order: more pictures move none to another side."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from smalti.errors import InvalidInputError


def share_of(seed: int, key: str) -> float:
    """Places a key in [0, 1), evenly over all keys and the same on every machine."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def choose(shares: Mapping[str, float], place: float) -> str:
    """Chooses the split on which a place in [0, 1) falls; what the shares leave is "train"."""
    for split, share in shares.items():
        place -= share
        if place < 0:
            return split
    return "train"


def split_clusters(
    clusters: Int[np.ndarray, " pictures"],
    keys: Sequence[str],
    shares: Mapping[str, float],
    seed: int = 0,
) -> list[str]:
    """Assigns every picture a split, near copies the same one.

    Args:
        clusters: the number of every picture's cluster.
        keys: something about every picture that stays, such as a digest of its pixels.
        shares: the share of every split but "train", each in [0, 1].
        seed: another seed, another split.
    """
    smallest: dict[int, str] = {}
    for cluster, key in zip(clusters.tolist(), keys, strict=True):
        smallest[cluster] = min(key, smallest.get(cluster, key))
    chosen = {cluster: choose(shares, share_of(seed, key)) for cluster, key in smallest.items()}
    return [chosen[cluster] for cluster in clusters.tolist()]


def refuse_empty(splits: Sequence[str], expected: Sequence[str]) -> None:
    """Checks that every split has a picture.

    Raises:
        InvalidInputError: one has none.
    """
    counts = Counter(splits)
    for split in expected:
        if not counts[split]:
            raise InvalidInputError(split, f"none of {len(splits)} pictures falls on this split")
