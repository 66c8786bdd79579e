"""Pictures as the image tokenizer draws them, whole or with tokens mixed up: what a ranker meets when it serves."""

import numpy as np
from jaxtyping import Int, UInt8

from smalti.models.vqgan import VQGAN

_MIXED = (0.1, 0.5)
"""The share of a picture's tokens that are another picture's."""

Pixels = UInt8[np.ndarray, "pictures height width 3"]


class Redrawing:
    """Draws some pictures of a batch again from their tokens, and adds damaged ones."""

    def __init__(self, vqgan: VQGAN, seed: int, redrawn: float, damaged: float) -> None:
        """Keeps how much is done.

        Args:
            vqgan: the image tokenizer.
            seed: of everything random.
            redrawn: the share of the pictures that are drawn again.
            damaged: how many damaged pictures are added, as a share of the others; at most `redrawn`.
        """
        self._vqgan = vqgan
        self._seed = seed
        self._redrawn = redrawn
        self._damaged = damaged

    def __call__(self, pixels: Pixels, number: int) -> Pixels:
        """Returns the pictures of a batch, and after them damaged ones; a function of its arguments and the seed.

        A damaged picture has some tokens of its neighbour's, which is like it but for one aspect, as a rule. It is
        made of one that is drawn again, so that what the tokenizer does to every picture does not tell it.
        """
        generator = np.random.Generator(np.random.Philox(key=(self._seed, 2), counter=(0, 0, 0, number)))
        redrawn, damaged = round(self._redrawn * len(pixels)), round(self._damaged * len(pixels))
        if not redrawn:
            return pixels
        rows = np.sort(generator.permutation(len(pixels))[:redrawn])
        codes = np.asarray(self._vqgan.encode(pixels[rows].astype(np.float32) / 255))
        chosen = generator.permutation(redrawn)[:damaged]
        mixed = mix(codes, chosen, generator)
        drawn = np.asarray(self._vqgan.decode(np.concatenate([codes, mixed])))
        drawn = (drawn.clip(0, 1) * 255).round().astype(np.uint8)
        result = np.concatenate([pixels, drawn[redrawn:]])
        result[rows] = drawn[:redrawn]
        return result


def mix(
    codes: Int[np.ndarray, "pictures tokens"],
    chosen: Int[np.ndarray, " chosen"],
    generator: np.random.Generator,
) -> Int[np.ndarray, "chosen tokens"]:
    """Replaces some tokens of the chosen pictures by those of the next one at the same places."""
    shares = generator.uniform(*_MIXED, (len(chosen), 1))
    replaced = generator.random((len(chosen), codes.shape[1])) < shares
    return np.where(replaced, codes[(chosen + 1) % len(codes)], codes[chosen])
