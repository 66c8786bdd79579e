"""The encoding of a prompt."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Encoding:
    """Hidden states of the text encoder for one prompt."""

    states: Float[np.ndarray, "positions d_model"]
    mask: Int[np.ndarray, " positions"]
    """1 at text, 0 at padding."""
    cut: bool = False
    """Whether the prompt was too long for the model and its end was cut off."""
