"""Similarity of pictures: PSNR and SSIM, and how sharp they are."""

import numpy as np
from jaxtyping import Float, UInt8
from numpy.lib.stride_tricks import sliding_window_view

_WINDOW = 7
_C1, _C2 = 0.01**2, 0.03**2

Pictures = Float[np.ndarray, "pictures height width 3"]


def psnr(a: Pictures, b: Pictures) -> Float[np.ndarray, " pictures"]:
    """Returns the peak signal-to-noise ratio in dB of pictures in [0, 1]; 100 for equal pictures."""
    return -10 * np.log10(np.square(a - b).mean((1, 2, 3)).clip(1e-10))


def ssim(a: Pictures, b: Pictures) -> Float[np.ndarray, " pictures"]:
    """Returns the structural similarity of pictures in [0, 1] (Wang et al. 2004, equation 13) in gray values.

    The windows are 7 by 7 pixels with equal weights.
    """
    a, b = a.mean(-1), b.mean(-1)

    def mean(x: Float[np.ndarray, "pictures height width"]) -> Float[np.ndarray, "pictures rows columns"]:
        return sliding_window_view(x, (_WINDOW, _WINDOW), axis=(1, 2)).mean((-1, -2))

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    likeness /= (mean_a**2 + mean_b**2 + _C1) * (variance_a + variance_b + _C2)
    return likeness.mean((1, 2))


def sharpness(pixels: UInt8[np.ndarray, "pictures height width 3"]) -> Float[np.ndarray, " pictures"]:
    """Returns the 99th percentile of the gray value's gradient, of 255: the contrast of a picture's outlines."""
    gray = pixels.astype(np.float64).mean(-1)
    down, across = np.gradient(gray, axis=(1, 2))
    return np.percentile(np.hypot(down, across).reshape(len(pixels), -1), 99, axis=1)
