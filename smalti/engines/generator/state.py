"""State of the generator's batch: fixed shapes, donated to every step, each slot at its own position."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int, UInt32

from smalti.compilation import program
from smalti.engines.generator.attention import Blocks, KeysValues, empty
from smalti.engines.generator.partition import STATE_RULES, Partition
from smalti.models.bart import DalleBartConfig
from smalti.models.layers import Shaped
from smalti.parameters import FREE


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prefix:
    """Cross-attention keys and values of one prompt, shared by all tokens of its candidates."""

    layers: tuple[KeysValues, ...]
    """Keys and values of each layer, with a single row."""
    mask: Bool[Shaped, "1 positions"]
    """True at text, False at padding."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling parameters of each slot, for `smalti.engines.generator.sampling.sample`."""

    seed: UInt32[Shaped, "slots 2"]
    """High and low word of the seed."""
    candidate: Int[Shaped, " slots"]
    """Index of the candidate, which selects its random numbers."""
    guidance_scale: Float[Shaped, " slots"]
    """Guidance scale; 1 for no guidance."""
    temperature: Float[Shaped, " slots"]
    """Temperature; 0 for greedy sampling."""
    top_k: Int[Shaped, " slots"]
    """Number of tokens to sample from; 0 for no limit."""
    top_p: Float[Shaped, " slots"]
    """Probability that the tokens to sample from reach together; 1 for no limit."""
    layout_length: Int[Shaped, " slots"]
    """Number of positions, the first ones, to which the two values below apply; 0 for none."""
    layout_temperature: Float[Shaped, " slots"]
    """Temperature of the layout."""
    layout_guidance_scale: Float[Shaped, " slots"]
    """Guidance scale of the layout."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class DecodeState:
    """Everything that changes from token to token.

    A slot holds one candidate with its conditional and its unconditional half: both see the same image tokens, and one
    token is sampled for both. A slot at position `image_length` is finished or free. It is still computed, since shapes
    are fixed, but its results are ignored.
    """

    tokens: Int[Shaped, "slots image_length"]
    """Image tokens so far; undefined from `position` on."""
    position: Int[Shaped, " slots"]
    """Position of the next token."""
    given: Int[Shaped, "slots image_length"]
    """Tokens that are taken instead of sampled ones; `FREE` where one is sampled."""
    sampling: Sampling
    """Sampling parameters of each slot's candidate."""
    self_attention: tuple[tuple[Blocks, ...], ...]
    """Keys and values of each layer and group of slots. Rows are `[2 * slots_in_group, ...]`: for each slot its
    conditional half, then its unconditional half. Undefined from `position` on."""
    cross_attention: tuple[KeysValues, ...]
    """Keys and values of each layer, for each slot's prompt. The unconditional half is the same for all slots and is
    not stored here."""
    cross_mask: Bool[Shaped, "slots text_length"]
    """True where a slot's prompt has text, False at padding."""


def block_length(config: DalleBartConfig, blocks: int) -> int:
    """Returns the positions per block: as few whole rows of tiles as make at most `blocks` blocks."""
    side = math.isqrt(config.image_length)
    return min(config.image_length, side * -(-side // blocks))


@program(static_argnums=(0, 1, 2, 3, 4, 5))
def empty_state(
    partition: Partition, config: DalleBartConfig, slots: int, dtype: DTypeLike, blocks: int, groups: int
) -> DecodeState:
    """Makes a state in which every slot is free.

    Args:
        partition: the devices.
        config: configuration of the model.
        slots: number of slots.
        dtype: type of keys and values.
        blocks: maximum number of blocks in self-attention.
        groups: number of groups of slots, each of which attends only over the blocks that it needs.
    """
    layout, length = partition.layout_for(config), block_length(config, blocks)

    def keys_values(rows: int, positions: int) -> KeysValues:
        return empty(layout, rows, positions, config.d_model, dtype)

    starts = range(0, config.image_length, length)
    state = DecodeState(
        tokens=jnp.zeros((slots, config.image_length), jnp.int32),
        position=jnp.full(slots, config.image_length, jnp.int32),
        given=jnp.full((slots, config.image_length), FREE, jnp.int32),
        sampling=Sampling(
            seed=jnp.zeros((slots, 2), jnp.uint32),
            candidate=jnp.zeros(slots, jnp.int32),
            guidance_scale=jnp.ones(slots, jnp.float32),
            temperature=jnp.ones(slots, jnp.float32),
            top_k=jnp.zeros(slots, jnp.int32),
            top_p=jnp.ones(slots, jnp.float32),
            layout_length=jnp.zeros(slots, jnp.int32),
            layout_temperature=jnp.ones(slots, jnp.float32),
            layout_guidance_scale=jnp.ones(slots, jnp.float32),
        ),
        self_attention=tuple(
            tuple(
                tuple(
                    keys_values(2 * slots // groups, min(length, config.image_length - start))
                    for start in starts
                )
                for _ in range(groups)
            )
            for _ in range(config.decoder_layers)
        ),
        cross_attention=tuple(
            keys_values(slots, config.max_text_length) for _ in range(config.decoder_layers)
        ),
        cross_mask=jnp.zeros((slots, config.max_text_length), bool),
    )
    return partition.constrain(state, STATE_RULES)


def abstract_state(
    partition: Partition, config: DalleBartConfig, slots: int, dtype: DTypeLike, blocks: int, groups: int
) -> DecodeState:
    """Returns what stands for a state on the devices, to compile for them; see `empty_state`."""
    made = empty_state.shape(partition, config, slots, dtype, blocks, groups)
    return partition.abstract(made, STATE_RULES)
