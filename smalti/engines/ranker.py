"""The ranker: which of a prompt's pictures fit it best."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from smalti.models.clip import DEFAULT_BATCH_SIZE, Clip
from smalti.registry.folder import ModelFolder


class RankerEngine:
    """Scores pictures against their prompt."""

    def __init__(self, clip: Clip, *, batch_size: int = DEFAULT_BATCH_SIZE) -> None:
        """Keeps the model.

        Args:
            clip: the model.
            batch_size: pictures in one run of the model.
        """
        self.clip = clip
        self.batch_size = batch_size

    @classmethod
    def load(cls, folder: ModelFolder) -> "RankerEngine":
        """Loads the engine of a model; raises `ModelError` when a file of it cannot be used."""
        return cls(Clip.load(folder.clip_source))

    def rank(self, prompt: str, pictures: Sequence[Image.Image]) -> Float[np.ndarray, " pictures"]:
        """Returns the score of each picture, higher for a better fit."""
        return self.clip.scores(prompt, pictures, batch_size=self.batch_size)


def best(scores: Sequence[float] | Float[np.ndarray, " pictures"], n: int) -> list[int]:
    """Returns the indices of the n highest scores, best first; of equal scores the lower index comes first.

    All are returned when there are fewer than n. What is not a number comes last.
    """
    return [int(index) for index in np.argsort(-np.asarray(scores, np.float64), kind="stable")[:n]]
