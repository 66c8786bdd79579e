"""The ranker: how well pictures fit their prompt, and what they look like."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from PIL import Image

from smalti.registry.folder import ModelFolder

if TYPE_CHECKING:
    from smalti.models.clip import Clip, Ranking


class RankerEngine:
    """Scores pictures against their prompt."""

    def __init__(self, clip: "Clip", *, batch_size: int | None = None) -> None:
        """Makes the engine of a CLIP.

        Args:
            clip: the model.
            batch_size: pictures per run of the model; None for that of the model.
        """
        self.clip = clip
        self.batch_size = batch_size or clip.batch_size

    @classmethod
    def load(cls, folder: ModelFolder) -> "RankerEngine":
        """Loads the engine of a model; raises `ModelError` if a file cannot be used."""
        # Not before: importing torch takes longer than all the rest, and can run beside it.
        from smalti.models.clip import Clip

        return cls(Clip.load(folder.clip_source))

    def rank(self, prompt: str, pictures: Sequence[Image.Image]) -> Float[np.ndarray, " pictures"]:
        """Returns the score of each picture; higher is better."""
        return self.look(prompt, pictures).scores

    def look(self, prompt: str, pictures: Sequence[Image.Image]) -> "Ranking":
        """Returns the score of each picture, and its features, for `smalti.selection.choose`."""
        return self.clip.rank(prompt, pictures, batch_size=self.batch_size)
