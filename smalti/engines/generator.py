"""The image-token generator: prompts' encodings in, image tokens out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from smalti.engines.decode_state import DecodeState, Prefix, Sampling, empty_state
from smalti.engines.decode_step import insert, prefill, step
from smalti.engines.decode_weights import decoder_weights
from smalti.engines.encoder import Encoding
from smalti.engines.sampling import seed_words
from smalti.errors import ConfigError
from smalti.models.bart import DalleBart
from smalti.parameters import SamplingParameters

DEFAULT_SLOTS = 16

RowsDrawn = Callable[[int, int], None]
"""Called after each quantum with the rows of tiles drawn so far and the rows there will be, over all candidates."""


@dataclass(frozen=True)
class Candidate:
    """One picture to draw: its random numbers follow from seed and index alone."""

    seed: int
    index: int
    sampling: SamplingParameters


class GeneratorEngine:
    """Draws the tokens of candidates, in a fixed number of slots, one row of tiles per dispatch.

    The same program runs whatever a request asks for, and always over all slots, so that a candidate's tokens are the
    same alone and among others.
    """

    def __init__(
        self, bart: DalleBart, unconditional: Encoding, *, slots: int = DEFAULT_SLOTS, dtype: DTypeLike = jnp.float32
    ) -> None:
        """Arranges the decoder's weights and computes what all prompts share.

        Args:
            bart: the model; its decoder is read.
            unconditional: the encoding of the empty prompt.
            slots: how many candidates are drawn at the same time.
            dtype: the type to compute in.

        Raises:
            ConfigError: the model's image length is no square.
        """
        self.config = bart.config
        self.side = math.isqrt(bart.config.image_length)
        if self.side**2 != bart.config.image_length:
            raise ConfigError(f"image_length: {bart.config.image_length} tokens do not make a square picture")
        self.slots = slots
        self._dtype = dtype
        self._weights = decoder_weights(bart.config, bart.params, dtype)
        # Only the real tokens of the empty prompt are kept: attention gives padding a weight of exactly 0.
        real = int(unconditional.mask.sum())
        self._unconditional = self._prefill(Encoding(unconditional.states[:real], unconditional.mask[:real]))
        self._state: DecodeState | None = None

    def generate(
        self, encoding: Encoding, candidates: Sequence[Candidate], rows_drawn: RowsDrawn | None = None
    ) -> Int[np.ndarray, "candidates tokens"]:
        """Draws the candidates of one prompt; those that do not fit into the slots wait for a free one.

        Args:
            encoding: the prompt's encoding.
            candidates: what to draw.
            rows_drawn: told of the progress after each row.
        """
        prefix = self._prefill(encoding)
        drawn = [
            self._generate_wave(prefix, candidates[start : start + self.slots], start, len(candidates), rows_drawn)
            for start in range(0, len(candidates), self.slots)
        ]
        return np.concatenate(drawn) if drawn else np.zeros((0, self.config.image_length), np.int32)

    def _generate_wave(
        self,
        prefix: Prefix,
        candidates: Sequence[Candidate],
        done: int,
        of: int,
        rows_drawn: RowsDrawn | None,
    ) -> Int[np.ndarray, "candidates tokens"]:
        """Draws as many candidates as there are slots, or fewer."""
        state = self._state or empty_state(self.config, self.slots, self._dtype)
        # The state is donated below: should a dispatch fail or be interrupted, the next call makes a new one.
        self._state = None
        slots = np.full(self.slots, self.slots, np.int32)
        slots[: len(candidates)] = np.arange(len(candidates))
        state = insert(state, prefix, jnp.asarray(slots), self._sampling(candidates))
        for row in range(self.side):
            state = step(self.config, self._weights, self._unconditional, state, np.int32(self.side))
            jax.block_until_ready(state.position)
            if rows_drawn:
                rows_drawn(done * self.side + (row + 1) * len(candidates), of * self.side)
        self._state = state
        return np.asarray(state.tokens)[: len(candidates)]

    def _prefill(self, encoding: Encoding) -> Prefix:
        return prefill(
            self.config, self._weights, jnp.asarray(encoding.states)[None], jnp.asarray(encoding.mask)[None]
        )

    def _sampling(self, candidates: Sequence[Candidate]) -> Sampling:
        """Lays the candidates' parameters out by slot; slots that stay free get zeros."""

        def by_slot(values: Sequence[float], dtype: DTypeLike) -> Array:
            laid = np.zeros(self.slots, dtype)
            laid[: len(values)] = values
            return jnp.asarray(laid)

        seeds = np.zeros((self.slots, 2), np.uint32)
        for slot, candidate in enumerate(candidates):
            seeds[slot] = seed_words(candidate.seed)
        parameters = [candidate.sampling for candidate in candidates]
        return Sampling(
            seed=jnp.asarray(seeds),
            candidate=by_slot([candidate.index for candidate in candidates], np.int32),
            guidance_scale=by_slot([each.guidance_scale for each in parameters], np.float32),
            temperature=by_slot([each.temperature for each in parameters], np.float32),
            top_k=by_slot([each.top_k for each in parameters], np.int32),
            top_p=by_slot([each.top_p for each in parameters], np.float32),
        )
