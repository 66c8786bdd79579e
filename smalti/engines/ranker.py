"""The ranker: how well pictures fit their prompt."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from smalti.models.clip import DEFAULT_BATCH_SIZE, Clip
from smalti.registry.folder import ModelFolder


class RankerEngine:
    """Scores pictures against their prompt."""

    def __init__(self, clip: Clip, *, batch_size: int = DEFAULT_BATCH_SIZE) -> None:
        """Makes the engine of a CLIP.

        Args:
            clip: the model.
            batch_size: pictures per run of the model.
        """
        self.clip = clip
        self.batch_size = batch_size

    @classmethod
    def load(cls, folder: ModelFolder) -> "RankerEngine":
        """Loads the engine of a model; raises `ModelError` if a file cannot be used."""
        return cls(Clip.load(folder.clip_source))

    def rank(self, prompt: str, pictures: Sequence[Image.Image]) -> Float[np.ndarray, " pictures"]:
        """Returns the score of each picture; higher is better."""
        return self.clip.scores(prompt, pictures, batch_size=self.batch_size)


def best(scores: Sequence[float] | Float[np.ndarray, " pictures"], n: int) -> list[int]:
    """Returns the indices of the n highest scores, best first; all of them if there are fewer.

    Equal scores are ordered by index. NaN comes last.
    """
    return [int(index) for index in np.argsort(-np.asarray(scores, np.float64), kind="stable")[:n]]
