"""Pictures reconstructed from their tokens, intact or with tokens mixed up: such pictures a ranker has to compare."""

import numpy as np
from jaxtyping import Int, UInt8

from smalti.models.layers import average_squares
from smalti.models.vqgan import VQGAN
from smalti.training.batches.random_numbers import generator_at

_MIXED = (0.1, 0.5)
"""Range of the share of a damaged picture's tokens that come from another picture."""
_STREAM = 2
"""Stream of random numbers of the reconstructions; see `generator_at`."""


class Reconstructor:
    """Replaces some pictures of a batch by their reconstructions, and adds damaged ones."""

    def __init__(self, vqgan: VQGAN, seed: int, *, redrawn: float, damaged: float) -> None:
        """Makes the reconstructor of a run.

        Args:
            vqgan: image tokenizer, for pictures of the batches' size; or for larger ones, if its encoder reads at most
                the batches' size.
            seed: seed of everything random.
            redrawn: share of the pictures that are reconstructed.
            damaged: number of damaged pictures to add, as a share of the others; at most `redrawn`.
        """
        self._vqgan = vqgan
        self._seed = seed
        self._redrawn = redrawn
        self._damaged = damaged

    def __call__(
        self, pixels: UInt8[np.ndarray, "pictures height width 3"], number: int
    ) -> UInt8[np.ndarray, "result height width 3"]:
        """Returns the pictures of a batch, followed by damaged ones; a function of the arguments and the seed.

        A damaged picture takes some tokens from its neighbour, which usually differs from it in one aspect. Only
        reconstructed pictures are damaged, so that the traces of the tokenizer do not give damaged ones away.
        """
        generator = generator_at(self._seed, _STREAM, number)
        redrawn, damaged = round(self._redrawn * len(pixels)), round(self._damaged * len(pixels))
        if not redrawn:
            return pixels
        rows = np.sort(generator.permutation(len(pixels))[:redrawn])
        factor = self._vqgan.config.resolution // pixels.shape[1]
        # The encoder takes the means of squares, so it sees enlarged pictures as they were.
        read = pixels[rows].repeat(factor, 1).repeat(factor, 2)
        codes = np.asarray(self._vqgan.encode(read.astype(np.float32) / 255))
        chosen = generator.permutation(redrawn)[:damaged]
        mixed = mix(codes, chosen, generator)
        decoded = self._vqgan.decode(np.concatenate([codes, mixed])).clip(0, 1)
        drawn = (np.asarray(average_squares(decoded, factor)) * 255).round().astype(np.uint8)
        result = np.concatenate([pixels, drawn[redrawn:]])
        result[rows] = drawn[:redrawn]
        return result


def mix(
    codes: Int[np.ndarray, "pictures tokens"],
    chosen: Int[np.ndarray, " chosen"],
    generator: np.random.Generator,
) -> Int[np.ndarray, "chosen tokens"]:
    """Returns the codes of the chosen pictures, with some replaced by the next picture's at the same positions."""
    shares = generator.uniform(*_MIXED, (len(chosen), 1))
    replaced = generator.random((len(chosen), codes.shape[1])) < shares
    return np.where(replaced, codes[(chosen + 1) % len(codes)], codes[chosen])
