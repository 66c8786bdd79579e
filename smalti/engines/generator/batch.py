"""The generator's batch on its devices: weights, state and compiled programs behind a few calls from the host."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from smalti.compilation import backend
from smalti.engines.encoding import Encoding
from smalti.engines.generator.memory import check_fits
from smalti.engines.generator.partition import Partition
from smalti.engines.generator.programs import insert, insert_primed, prefill, prime, release, step
from smalti.engines.generator.requests import Candidate
from smalti.engines.generator.sampling import seed_words
from smalti.engines.generator.state import DecodeState, Prefix, Sampling, block_length, empty_state
from smalti.engines.generator.weights import DecoderWeights, decoder_weights
from smalti.errors import ConfigError
from smalti.models.bart import DalleBart, DalleBartConfig
from smalti.models.layers import compute_dtype
from smalti.parameters import FREE
from smalti.registry.spec import ModelSpec

BLOCKS = 4
"""Default number of blocks in self-attention; each one is another program to compile."""
MAX_GROUPS, MIN_GROUP_SLOTS = 4, 4
"""Maximum number of groups of slots on a CPU, and minimum number of slots in a group."""
MAX_SHORT_IMAGE = 128
"""Tokens of an image up to which a step attends over all blocks. Skipping some saves nothing there, and the programs
that can are several times as large, so that a start takes longer."""


def default_groups(slots: int, partition: Partition) -> int:
    """Returns the default number of groups of slots: more than one only on a single CPU.

    There, a group attends only over the blocks that its own slots have filled. A GPU would have to consult the host for
    every group and layer; on several devices, groups would not be on the devices of their slots' other arrays.
    """
    alone = backend() == "cpu" and partition.mesh.size == 1
    return math.gcd(slots // MIN_GROUP_SLOTS, MAX_GROUPS) if alone and slots % MIN_GROUP_SLOTS == 0 else 1


@runtime_checkable
class Batch(Protocol):
    """The interface of a batch for the engine's loop; `DecodeBatch` implements it."""

    slots: int
    steps_per_dispatch: int
    image_length: int

    def warm_up(self, *, everything: bool) -> None:
        """Compiles the programs that every request needs, or all, so that no request has to wait for compilation."""

    def prefill(self, encoding: Encoding) -> Prefix:
        """Computes the cross-attention keys and values of a prompt."""

    def insert(self, prefix: Prefix, slots: Sequence[int], candidates: Sequence[Candidate]) -> None:
        """Starts candidates of one prompt in slots, each after the given tokens at its beginning."""

    def release(self, slots: Sequence[int]) -> None:
        """Frees slots whose candidates are not finished."""

    def step(self) -> Int[np.ndarray, "slots steps"]:
        """Generates the next tokens of every slot and returns them."""

    def check(self) -> None:
        """Raises an error if the programs fail without a request, or the state is lost; changes no slot."""

    def reset(self) -> None:
        """Makes a new state, in which every slot is free: a step that failed may have taken the old one."""


class DecodeBatch:
    """A fixed number of slots on the devices."""

    def __init__(
        self,
        bart: DalleBart,
        unconditional: Encoding,
        *,
        slots: int,
        steps_per_dispatch: int | None = None,
        dtype: DTypeLike | None = None,
        partition: Partition | None = None,
        blocks: int = BLOCKS,
        groups: int | None = None,
        skip_blocks: bool | None = None,
    ) -> None:
        """Arranges the decoder's weights and computes the prefix of the empty prompt.

        Args:
            bart: the model; only its decoder is used.
            unconditional: encoding of the empty prompt.
            slots: number of candidates that are generated at the same time.
            steps_per_dispatch: tokens per slot and dispatch; by default one row of tiles.
            dtype: the type to compute in; by default `compute_dtype()`.
            partition: the devices; by default those of the settings.
            blocks: maximum number of blocks in self-attention. A step attends over the blocks up to the slot that is
                furthest ahead; more blocks save more work but take longer to compile.
            groups: number of groups of slots, each of which attends only over the blocks that it needs; must divide
                `slots`; by default `default_groups()`, or 1 if no blocks are skipped.
            skip_blocks: whether a step leaves out the blocks that it does not need; by default for images of more than
                `MAX_SHORT_IMAGE` tokens. The tokens are the same.

        Raises:
            ConfigError: the model's image length is not a square number.
            InvalidInputError: the devices cannot share the model or the slots evenly.
        """
        self.config = bart.config
        self.image_length = bart.config.image_length
        side = math.isqrt(self.image_length)
        if side**2 != self.image_length:
            raise ConfigError(f"image_length: {self.image_length} tokens do not make a square picture")
        self.slots = slots
        self.steps_per_dispatch = steps_per_dispatch or side
        self._partition = partition or Partition.of_settings()
        self._partition.check(bart.config, slots)
        dtype = jnp.dtype(compute_dtype() if dtype is None else dtype)
        check_fits(self._partition, bart.config, slots, dtype)
        # Position of each slot, tracked on the host to avoid copies from the device.
        self._positions = np.full(slots, self.image_length)
        self._weights = decoder_weights(bart.config, bart.params, dtype, self._partition)
        # Padding of the empty prompt is dropped: attention gives it a weight of exactly 0.
        real = int(unconditional.mask.sum())
        self._unconditional = self.prefill(Encoding(unconditional.states[:real], unconditional.mask[:real]))
        if not self._partition.cached.has_blocks:
            blocks, groups, skip_blocks = 1, 1, False
        self._block_length = block_length(bart.config, blocks)
        self._skip_blocks = self.image_length > MAX_SHORT_IMAGE if skip_blocks is None else skip_blocks
        if groups is None:
            groups = default_groups(slots, self._partition) if self._skip_blocks else 1
        self._groups = groups
        self._dtype, self._blocks = dtype, blocks
        self.reset()

    @classmethod
    def load(
        cls, spec: ModelSpec, unconditional: Encoding, *, slots: int, partition: Partition | None = None
    ) -> Self:
        """Loads the decoder of a model; raises what `__init__` does, or `ModelError` if a file cannot be used."""
        # The batch makes its own arrangement of the decoder's weights, after which the originals are freed.
        half = DalleBart.load(spec.folder.bart_folder, part="decoder", on_host=True)
        return cls(half, unconditional, slots=slots, partition=partition)

    def reset(self) -> None:
        """Makes a new state, in which every slot is free."""
        self._positions[:] = self.image_length
        self._state = empty_state(
            self._partition, self.config, self.slots, self._dtype, self._blocks, self._groups
        )

    def check(self) -> None:
        """Raises an error if the programs fail without a request, or the state is lost; changes no slot."""
        self.insert(self.prefill(self._empty_prompt()), (), ())
        jax.block_until_ready(self._state)

    def _empty_prompt(self) -> Encoding:
        length, d_model = self.config.max_text_length, self.config.d_model
        return Encoding(np.zeros((length, d_model), np.float32), np.ones(length, np.int32))

    def warm_up(self, *, everything: bool) -> None:
        """Compiles the programs, the long one beside the others; with `everything`, also runs them on free slots."""
        counts = sorted({self._blocks_for(length) for length in range(1, self.image_length + 1)})
        with ThreadPoolExecutor(thread_name_prefix="compile") as threads:
            steps = [threads.submit(step.prepare, *self._step_arguments(blocks)) for blocks in counts]
            prefix = self.prefill(self._empty_prompt())
            self.insert(prefix, (), ())
            if everything:
                self._start_after((0,), prefix, ())
                self.release(())
            for each in steps:
                each.result()
        if everything:
            for blocks in counts:
                self._step(blocks)

    def prefill(self, encoding: Encoding) -> Prefix:
        """Computes the cross-attention keys and values of a prompt."""
        put = self._partition.put
        states, mask = put(np.asarray(encoding.states)), put(np.asarray(encoding.mask))
        return prefill(self._partition, self.config, self._weights, states, mask)

    def insert(self, prefix: Prefix, slots: Sequence[int], candidates: Sequence[Candidate]) -> None:
        """Starts candidates of one prompt in slots, each after the given tokens at its beginning."""
        given = np.full((self.slots, self.image_length), FREE, np.int32)
        beginnings: dict[tuple[int, ...], list[int]] = {}
        for row, slot, candidate in zip(given, slots, candidates, strict=False):
            row[: len(candidate.given)] = candidate.given
            start = candidate.start(self.image_length)
            self._positions[slot] = start
            beginnings.setdefault(candidate.given[:start], []).append(slot)
        self._state = insert(
            self._partition,
            self._state,
            prefix,
            self._indices(slots),
            self._sampling(candidates),
            self._partition.put(given),
        )
        for beginning, members in beginnings.items():
            if beginning:
                self._start_after(beginning, prefix, members)

    def _start_after(self, given: Sequence[int], prefix: Prefix, slots: Sequence[int]) -> None:
        """Lets slots that were just inserted start after the given tokens at their beginning."""
        tokens = np.zeros(self.image_length, np.int32)
        tokens[: len(given)] = given
        on_device = self._partition.put(tokens)
        primed = prime(self._partition, self.config, self._weights, prefix, self._unconditional, on_device)
        length = self._partition.put(np.asarray(len(given), np.int32))
        self._state = insert_primed(
            self._partition, self._state, primed, on_device, length, self._indices(slots)
        )

    def release(self, slots: Sequence[int]) -> None:
        """Frees slots whose candidates are not finished."""
        self._positions[list(slots)] = self.image_length
        self._state = release(self._partition, self._state, self._indices(slots))

    def step(self) -> Int[np.ndarray, "slots steps"]:
        """Generates the next tokens of every slot, and copies all of them from the device at once."""
        active = self._positions[self._positions < self.image_length]
        tokens = self._step(self._blocks_for(int(active.max(initial=0)) + self.steps_per_dispatch))
        self._positions = np.minimum(self._positions + self.steps_per_dispatch, self.image_length)
        return tokens

    def _blocks_for(self, length: int) -> int:
        """Returns how many blocks hold `length` tokens; all if none are skipped, or if each group selects its own."""
        if self._groups > 1 or not self._skip_blocks:
            length = self.image_length
        return -(-min(length, self.image_length) // self._block_length)

    def _step(self, blocks: int) -> Int[np.ndarray, "slots steps"]:
        self._state, tokens = step(*self._step_arguments(blocks))
        return np.asarray(tokens)

    def _step_arguments(
        self, blocks: int
    ) -> tuple[Partition, DalleBartConfig, DecoderWeights, Prefix, DecodeState, int, int]:
        return (
            self._partition,
            self.config,
            self._weights,
            self._unconditional,
            self._state,
            self.steps_per_dispatch,
            blocks,
        )

    def _indices(self, slots: Sequence[int]) -> Int[Array, " slots"]:
        """Returns slots as an array of fixed length, padded with an index past the last slot."""
        indices = np.full(self.slots, self.slots, np.int32)
        indices[: len(slots)] = slots
        return self._partition.put(indices)

    def _sampling(self, candidates: Sequence[Candidate]) -> Sampling:
        """Returns the candidates' sampling parameters as arrays of fixed length."""

        def pad(values: Sequence[int | float], dtype: DTypeLike) -> Array:
            padded = np.zeros(self.slots, dtype)
            padded[: len(values)] = values
            return self._partition.put(padded)

        seeds = np.zeros((self.slots, 2), np.uint32)
        for index, candidate in enumerate(candidates):
            seeds[index] = seed_words(candidate.seed)
        parameters = [candidate.sampling for candidate in candidates]
        return Sampling(
            seed=self._partition.put(seeds),
            candidate=pad([candidate.index for candidate in candidates], np.int32),
            guidance_scale=pad([each.guidance_scale for each in parameters], np.float32),
            temperature=pad([each.temperature for each in parameters], np.float32),
            top_k=pad([each.top_k for each in parameters], np.int32),
            top_p=pad([each.top_p for each in parameters], np.float32),
            layout_length=pad(
                [round(each.layout_share * self.image_length) for each in parameters], np.int32
            ),
            layout_temperature=pad([each.layout_temperature for each in parameters], np.float32),
            layout_guidance_scale=pad([each.layout_guidance_scale for each in parameters], np.float32),
        )
