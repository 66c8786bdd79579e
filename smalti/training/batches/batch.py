"""The inputs of a training step."""

from collections.abc import Mapping

import numpy as np

Batch = Mapping[str, np.ndarray]
"""Arrays whose first axis is the pictures of a step."""
