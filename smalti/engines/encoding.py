"""What the text encoder leaves behind of a prompt."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Encoding:
    """The text encoder's hidden states for one prompt, and which of its places hold text."""

    states: Float[np.ndarray, "places d_model"]
    mask: Int[np.ndarray, " places"]
    cut: bool = False
    """Whether the prompt was longer than the model reads, so that its end is missing."""
