"""Pictures for the refiner: what a model makes of a picture, beside the original."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from smalti.engines.decoder import DecoderEngine
from smalti.engines.refiner import enlarge
from smalti.models.bart import DalleBart
from smalti.models.layers import average_squares
from smalti.models.vqgan import VQGAN
from smalti.text.tokenizer import TextTokenizer
from smalti.training.batches.batch import Batch
from smalti.training.batches.pairs import Pairs
from smalti.training.batches.random_numbers import generator_at

_STREAM = 3
"""Stream of random numbers of the batches; see `generator_at`."""
_NEAR = 8
"""A code is replaced by one of this many nearest ones."""
_BLOCK = 1024
"""Number of codes whose distances to all others are in memory at the same time."""


class RefinerBatches:
    """Batches for the refiner, a function of seed and number alone.

    The original is shrunk to the model's resolution and goes through the tokens, some of which are replaced by near
    ones, as those of a generator would be. The result, enlarged again, is what the refiner starts from.
    """

    def __init__(
        self,
        pairs: Callable[[int], Pairs],
        *,
        vqgan: VQGAN,
        bart: DalleBart,
        tokenizer: TextTokenizer,
        upscale: int,
        replaced: float,
        seed: int,
    ) -> None:
        """Makes the batches of a run.

        Args:
            pairs: returns the originals of a batch with their captions, from its number.
            vqgan: the model's image tokenizer.
            bart: the model's transformer; only its encoder is used.
            tokenizer: the model's text tokenizer.
            upscale: size of the originals, as a multiple of the model's resolution.
            replaced: largest share of a picture's codes that are replaced.
            seed: seed of everything random.
        """
        self._pairs = pairs
        self._vqgan = vqgan
        self._bart = bart
        self._tokenizer = tokenizer
        self._upscale = upscale
        self._replaced = replaced
        self._seed = seed
        self._codebook = vqgan.codebook
        self._near = nearest_codes(self._codebook)

    def __call__(self, number: int) -> Batch:
        """Returns a batch: originals and starts in [0, 255], conditions, noise, and times."""
        return self.batch_of(self._pairs(number), generator_at(self._seed, _STREAM, number))

    def batch_of(self, pairs: Pairs, generator: np.random.Generator) -> Batch:
        """Returns the batch of given pictures; the generator makes all that is random about it."""
        codes = self._replace(self._encode(pairs.pixels), generator)
        decoded = DecoderEngine(self._vqgan, batch_size=len(codes)).decode(codes)
        side = round(codes.shape[1] ** 0.5)
        text = self._tokenizer(pairs.captions)
        states = self._bart.encode(text.input_ids, text.attention_mask)
        return {
            "original": pairs.pixels,
            "start": np.stack([enlarge(each, self._upscale) for each in decoded]),
            "codes": self._codebook[codes].reshape(len(codes), side, side, -1),
            "text": np.asarray(jax.device_get(states), np.float32),
            "mask": text.attention_mask.astype(np.int32),
            "noise": generator.standard_normal(pairs.pixels.shape, np.float32),
            # Logit-normal: most of the times are in the middle of the flow (Esser et al. 2024,
            # https://arxiv.org/abs/2403.03206).
            "t": (1 / (1 + np.exp(-generator.standard_normal(len(codes))))).astype(np.float32),
        }

    def _encode(self, pixels: UInt8[np.ndarray, "batch height width 3"]) -> Int[np.ndarray, "batch tokens"]:
        small = average_squares(jnp.asarray(pixels, jnp.float32) / 255, self._upscale)
        return np.asarray(self._vqgan.encode(small))

    def _replace(
        self, codes: Int[np.ndarray, "batch tokens"], generator: np.random.Generator
    ) -> Int[np.ndarray, "batch tokens"]:
        shares = generator.uniform(0, self._replaced, (len(codes), 1))
        chosen = generator.random(codes.shape) < shares
        near = self._near[codes, generator.integers(0, self._near.shape[1], codes.shape)]
        return np.where(chosen, near, codes)


def nearest_codes(codebook: Float[np.ndarray, "codes code_dim"]) -> Int[np.ndarray, "codes near"]:
    """Returns the codes nearest to each code, the nearest first; a code is not among its own."""
    near = min(_NEAR, len(codebook) - 1)
    squares = np.square(codebook).sum(-1)
    rows = []
    for start in range(0, len(codebook), _BLOCK):
        block = codebook[start : start + _BLOCK]
        distances = squares - 2 * block @ codebook.T
        distances[np.arange(len(block)), start + np.arange(len(block))] = np.inf
        rows.append(np.argsort(distances, axis=-1, kind="stable")[:, :near])
    return np.concatenate(rows).astype(np.int32)
