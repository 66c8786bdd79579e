"""Which candidates become the pictures of a request: the best ones, or good ones that differ from each other."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float

__all__ = ["FEATURE_TYPE", "SCORE_DIGITS", "best", "choose"]

SCORE_DIGITS: Final = 4
"""Decimal places of a score; further ones differ between machines, and between batches of pictures."""
FEATURE_TYPE: Final = np.dtype("<f2")
"""The type in which features are compared and stored, for the same reason."""


def best(scores: Sequence[float] | Float[np.ndarray, " candidates"], n: int) -> list[int]:
    """Returns the indices of the n highest scores, best first; all of them if there are fewer.

    Equal scores are ordered by index. NaN comes last.
    """
    return [int(index) for index in np.argsort(-np.asarray(scores, np.float64), kind="stable")[:n]]


def choose(
    scores: Sequence[float] | Float[np.ndarray, " candidates"],
    features: Float[np.ndarray, "candidates features"],
    n: int,
    diversity: float,
) -> list[int]:
    """Returns the indices of n candidates in the order in which they are chosen.

    The first is the best. Each further one has the largest `(1 - diversity) * score - diversity * similarity`, where
    the similarity is that to the most similar one chosen before (maximal marginal relevance, Carbonell and Goldstein
    1998, https://doi.org/10.1145/290941.291025). Scores and similarities are those among the candidates: 0 for the
    lowest, 1 for the highest, so that the weight means the same for every ranker. Of equal ones the better is chosen
    first.

    Args:
        scores: the ranker's scores.
        features: what the pictures look like, each row of length 1.
        n: number of candidates to choose; all of them if there are fewer.
        diversity: from 0, which chooses as `best` does, to 1, which after the first looks at differences alone.
    """
    order = best(scores, len(scores))
    if diversity == 0 or len(order) < 2:
        return order[:n]
    rounded = np.round(np.asarray(scores, np.float64), SCORE_DIGITS)[order]
    kept = np.asarray(features, FEATURE_TYPE).astype(np.float64)[order]
    kept /= np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    similarity = np.round(kept @ kept.T, SCORE_DIGITS)
    pairs = similarity[np.triu_indices(len(order), 1)]
    similarity = (similarity - pairs.min()) / max(float(np.ptp(pairs)), 10.0**-SCORE_DIGITS)
    value = (1 - diversity) * _scaled(rounded)
    chosen = [0]
    nearest = similarity[0]
    while len(chosen) < min(n, len(order)):
        left = value - diversity * nearest
        left[chosen] = -np.inf
        chosen.append(int(np.argmax(left)))
        nearest = np.maximum(nearest, similarity[chosen[-1]])
    return [order[index] for index in chosen[:n]]


def _scaled(scores: Float[np.ndarray, " candidates"]) -> Float[np.ndarray, " candidates"]:
    """Returns scores scaled to [0, 1]; those that are not finite become 0."""
    finite = np.isfinite(scores)
    lowest = scores[finite].min(initial=np.inf)
    spread = max(float(scores[finite].max(initial=-np.inf) - lowest), 10.0**-SCORE_DIGITS)
    return np.where(finite, (np.where(finite, scores, 0) - lowest) / spread, 0.0)
