"""How pictures look, as numbers: variety, copies, wobble, and the distance between two sets of pictures."""

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int, UInt8

FLAT = 12.0
"""Neighbours that differ by less, of 255, are part of a flat area."""

Pixels = UInt8[np.ndarray, "pictures side side 3"]
Features = Float[np.ndarray, "pictures features"]


def wobble(pixels: Pixels) -> Float[np.ndarray, " pictures"]:
    """Returns the mean difference, of 255, between neighbours in flat areas: blotches where nothing should be.

    Differences of `FLAT` and more are outlines and do not count.
    """
    gray = pixels.astype(np.float64).mean(-1)
    down, across = np.abs(np.diff(gray, axis=1)), np.abs(np.diff(gray, axis=2))
    differences = np.concatenate([down.reshape(len(pixels), -1), across.reshape(len(pixels), -1)], 1)
    flat = differences < FLAT
    return (differences * flat).sum(1) / np.maximum(flat.sum(1), 1)


def variety(features: Features, deviation: Float[np.ndarray, " features"]) -> float:
    """Returns the mean distance between the pictures of one prompt.

    The distance of two pictures is the root mean square, over the features, of their difference in deviations.

    Args:
        features: of the pictures; the variety of a single one is 0.
        deviation: each feature's standard deviation over real pictures, the unit of the distance.
    """
    if len(features) < 2:
        return 0.0
    scaled = features.astype(np.float64) / deviation
    square = np.square(scaled[:, None] - scaled[None]).mean(-1)
    upper = np.triu_indices(len(features), 1)
    return float(np.sqrt(square[upper]).mean())


def distinct(tokens: Int[np.ndarray, "candidates tokens"]) -> int:
    """Returns how many of a prompt's candidates differ from all others in at least one token, copies counted once."""
    return len(np.unique(tokens, axis=0))


def frechet_distance(
    a: Features, b: Float[np.ndarray, "others features"], deviation: Float[np.ndarray, " features"]
) -> float:
    """Returns the Fréchet distance of two sets of pictures (Heusel et al. 2017, arXiv 1706.08500, equation 6).

    |μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½), with every feature in units of its deviation over real pictures. It falls
    with the number of pictures, so only sets of equal size compare.

    Args:
        a: features of one set; at least two pictures.
        b: features of the other.
        deviation: each feature's standard deviation over real pictures.
    """
    a, b = a.astype(np.float64) / deviation, b.astype(np.float64) / deviation
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The trace of the root through symmetric matrices: roots of near-singular products lose their real part otherwise.
    root_a = _root(covariance_a)
    crossed = np.trace(_root(root_a @ covariance_b @ root_a))
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    return float(shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * crossed)


def nearest_distance(
    features: Features,
    others: Float[np.ndarray, "others features"],
    deviation: Float[np.ndarray, " features"],
) -> Float[np.ndarray, " pictures"]:
    """Returns each picture's distance to the nearest of other pictures, for finding copies of training pictures."""
    a, b = features.astype(np.float64) / deviation, others.astype(np.float64) / deviation
    square = np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(square.min(1).clip(0) / a.shape[1])


def _root(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Returns the square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = scipy.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T
