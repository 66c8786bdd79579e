"""The generator's batch on its device: weights, state, and the compiled programs, behind a few host-side calls."""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from smalti.engines.encoding import Encoding
from smalti.engines.generator.partition import Partition
from smalti.engines.generator.programs import insert, insert_primed, prefill, prime, release, step
from smalti.engines.generator.requests import Candidate
from smalti.engines.generator.sampling import seed_words
from smalti.engines.generator.state import Prefix, Sampling, block_length, empty_state
from smalti.engines.generator.weights import decoder_weights
from smalti.errors import ConfigError
from smalti.models.bart import DalleBart
from smalti.models.layers import compute_dtype
from smalti.settings import settings

BLOCKS = 4
"""Into how many parts the places of self-attention are cut; each is a program more to compile."""
GROUPS, GROUP_SLOTS = 4, 4
"""Into how many groups slots are put at most, on a CPU, and how many slots a group has at least."""


def default_groups(slots: int, partition: Partition) -> int:
    """Returns into how many groups slots are put: more than one on a single CPU only.

    There a group's attention goes over what its own slots have drawn. A GPU would have to ask the host for every group
    and layer which way to go; on several devices groups would be in other places than their slots' other arrays.
    """
    alone = jax.default_backend() == "cpu" and partition.mesh.size == 1
    return math.gcd(slots // GROUP_SLOTS, GROUPS) if alone and slots % GROUP_SLOTS == 0 else 1


@runtime_checkable
class Batch(Protocol):
    """What the engine's loop needs of a batch; `DecodeBatch` is the real one."""

    slots: int
    quantum: int
    image_length: int

    def warm_up(self) -> None:
        """Compiles every program, so that no request waits for it."""

    def prefill(self, encoding: Encoding) -> Prefix:
        """Computes what a prompt leaves behind for its candidates."""

    def insert(
        self, prefix: Prefix, slots: Sequence[int], candidates: Sequence[Candidate], given: Sequence[int]
    ) -> None:
        """Lets candidates of a prompt begin, behind the tokens that are given."""

    def release(self, slots: Sequence[int]) -> None:
        """Frees slots before they are finished."""

    def step(self) -> Int[np.ndarray, "slots quantum"]:
        """Draws the next tokens of every slot, and returns them."""


class DecodeBatch:
    """A fixed number of slots on the device."""

    def __init__(
        self,
        bart: DalleBart,
        unconditional: Encoding,
        *,
        slots: int,
        quantum: int | None = None,
        dtype: DTypeLike | None = None,
        partition: Partition | None = None,
        blocks: int = BLOCKS,
        groups: int | None = None,
    ) -> None:
        """Arranges the decoder's weights and computes what all prompts share.

        Args:
            bart: the model; its decoder is read.
            unconditional: the encoding of the empty prompt.
            slots: how many candidates are drawn at the same time.
            quantum: the tokens of one dispatch; one row of tiles by default.
            dtype: the type to compute in; by default that of `compute_dtype`.
            partition: the devices; by default those of the settings.
            blocks: into how many parts the places of self-attention are cut, at most. A step attends over the parts up
                to the slot that is furthest; more of them save more work, and take longer to compile.
            groups: the groups of slots for each of which it is found by itself how many parts it needs; a divisor of
                the slots, by default that of `default_groups`.

        Raises:
            ConfigError: the model's image length is no square.
            InvalidInputError: the devices cannot share the model or the slots evenly.
        """
        self.config = bart.config
        self.image_length = bart.config.image_length
        side = math.isqrt(self.image_length)
        if side**2 != self.image_length:
            raise ConfigError(f"image_length: {self.image_length} tokens do not make a square picture")
        self.slots = slots
        self.quantum = quantum or side
        self._partition = partition or Partition.parse(settings().generator_mesh)
        self._partition.check(bart.config, slots)
        dtype = jnp.dtype(compute_dtype() if dtype is None else dtype)
        self._block_length = block_length(bart.config, blocks)
        # The loop knows where every slot stands, so that nothing has to come from the device for it.
        self._positions = np.full(slots, self.image_length)
        self._weights = decoder_weights(bart.config, bart.params, dtype, self._partition)
        # Only the real tokens of the empty prompt are kept: attention gives padding a weight of exactly 0.
        real = int(unconditional.mask.sum())
        self._unconditional = self.prefill(Encoding(unconditional.states[:real], unconditional.mask[:real]))
        self._groups = default_groups(slots, self._partition) if groups is None else groups
        self._state = empty_state(self._partition, bart.config, slots, dtype, blocks, self._groups)

    def warm_up(self) -> None:
        """Runs every program once, on slots that are free and stay so."""
        places, d_model = self.config.max_text_length, self.config.d_model
        empty = Encoding(np.zeros((places, d_model), np.float32), np.ones(places, np.int32))
        self.insert(self.prefill(empty), (), (), given=(0,))
        self.release(())
        for blocks in sorted({self._blocks_for(places) for places in range(1, self.image_length + 1)}):
            self._step(blocks)

    def prefill(self, encoding: Encoding) -> Prefix:
        """Computes the cross-attention keys and values of a prompt."""
        states, mask = jnp.asarray(encoding.states), jnp.asarray(encoding.mask)
        return prefill(self._partition, self.config, self._weights, states, mask)

    def insert(
        self, prefix: Prefix, slots: Sequence[int], candidates: Sequence[Candidate], given: Sequence[int]
    ) -> None:
        """Lets candidates of a prompt begin in the slots, behind the tokens that are given."""
        where = self._indices(slots)
        self._positions[list(slots)] = len(given)
        self._state = insert(self._partition, self._state, prefix, where, self._sampling(candidates))
        if given:
            tokens = np.zeros(self.image_length, np.int32)
            tokens[: len(given)] = given
            on_device = jnp.asarray(tokens)
            primed = prime(
                self._partition, self.config, self._weights, prefix, self._unconditional, on_device
            )
            length = jnp.asarray(np.int32(len(given)))
            self._state = insert_primed(self._partition, self._state, primed, on_device, length, where)

    def release(self, slots: Sequence[int]) -> None:
        """Frees slots before they are finished."""
        self._positions[list(slots)] = self.image_length
        self._state = release(self._partition, self._state, self._indices(slots))

    def step(self) -> Int[np.ndarray, "slots quantum"]:
        """Draws the next tokens of every slot; one copy from the device brings all of them."""
        active = self._positions[self._positions < self.image_length]
        drawn = self._step(self._blocks_for(int(active.max(initial=0)) + self.quantum))
        self._positions = np.minimum(self._positions + self.quantum, self.image_length)
        return drawn

    def _blocks_for(self, places: int) -> int:
        """Returns how many blocks hold so many places of a picture; all, where the program finds it out by itself."""
        if self._groups > 1:
            places = self.image_length
        return -(-min(places, self.image_length) // self._block_length)

    def _step(self, blocks: int) -> Int[np.ndarray, "slots quantum"]:
        self._state, drawn = step(
            self._partition,
            self.config,
            self._weights,
            self._unconditional,
            self._state,
            self.quantum,
            blocks,
        )
        return np.asarray(drawn)

    def _indices(self, slots: Sequence[int]) -> Int[Array, " slots"]:
        """Slots as an array of always the same length; an index past the last slot stands for none."""
        indices = np.full(self.slots, self.slots, np.int32)
        indices[: len(slots)] = slots
        return jnp.asarray(indices)

    def _sampling(self, candidates: Sequence[Candidate]) -> Sampling:
        """Lays the candidates' parameters out as arrays of always the same length."""

        def laid(values: Sequence[int | float], dtype: DTypeLike) -> Array:
            padded = np.zeros(self.slots, dtype)
            padded[: len(values)] = values
            return jnp.asarray(padded)

        seeds = np.zeros((self.slots, 2), np.uint32)
        for place, candidate in enumerate(candidates):
            seeds[place] = seed_words(candidate.seed)
        parameters = [candidate.sampling for candidate in candidates]
        return Sampling(
            seed=jnp.asarray(seeds),
            candidate=laid([candidate.index for candidate in candidates], np.int32),
            guidance_scale=laid([each.guidance_scale for each in parameters], np.float32),
            temperature=laid([each.temperature for each in parameters], np.float32),
            top_k=laid([each.top_k for each in parameters], np.int32),
            top_p=laid([each.top_p for each in parameters], np.float32),
        )
