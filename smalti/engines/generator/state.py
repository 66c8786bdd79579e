"""The state of the generator's batch: fixed shapes, donated to every step, its rows at different positions."""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt32

from smalti.engines.generator.partition import STATE_RULES, Partition
from smalti.models.bart import DalleBartConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeysValues:
    """Keys and values of one attention, heads before places so that each head's places lie together."""

    keys: Float[Array, "rows heads places head_size"]
    values: Float[Array, "rows heads places head_size"]


Blocks = tuple[KeysValues, ...]
"""Keys and values of one attention, cut into blocks of places that are arrays of their own.

A step attends over the first blocks alone, those that are drawn already. A part of one large array would have to be
copied for that, and a block's sums would depend on what is attended to beside it.
"""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prefix:
    """What a prompt leaves behind for every token of its candidates: cross-attention keys and values, one row."""

    layers: tuple[KeysValues, ...]
    mask: Bool[Array, "1 places"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """How the tokens of each slot are drawn; see `smalti.engines.generator.sampling.draw`."""

    seed: UInt32[Array, "slots 2"]
    candidate: Int[Array, " slots"]
    guidance_scale: Float[Array, " slots"]
    temperature: Float[Array, " slots"]
    top_k: Int[Array, " slots"]
    top_p: Float[Array, " slots"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeState:
    """Everything that changes from token to token.

    A slot holds one candidate, its conditional and its unconditional half together: both see the same image tokens,
    and one token is drawn for both. A slot whose position is `image_length` is finished, or free; it is computed with
    the others, since shapes are fixed, and nothing reads what comes out.
    """

    tokens: Int[Array, "slots image_length"]
    """The tokens drawn so far; meaningless from `position` on."""
    position: Int[Array, " slots"]
    """The place of the next token."""
    sampling: Sampling
    self_attention: tuple[tuple[Blocks, ...], ...]
    """By layer and group of slots, `[2 * slots_of_group, ...]`: of each slot the conditional half, then the
    unconditional one; what stands at the places up to `position` is the slot's."""
    cross_attention: tuple[KeysValues, ...]
    """By layer, of each slot's prompt. The unconditional half's are the same for all slots and not held here."""
    cross_mask: Bool[Array, "slots text_length"]


def block_length(config: DalleBartConfig, blocks: int) -> int:
    """Returns the places of one block: whole rows of tiles, so many that there are at most `blocks` blocks."""
    side = math.isqrt(config.image_length)
    return min(config.image_length, side * -(-side // blocks))


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def empty_state(
    partition: Partition, config: DalleBartConfig, slots: int, dtype: DTypeLike, blocks: int, groups: int
) -> DecodeState:
    """Makes a state in which every slot is free.

    Args:
        partition: the devices.
        config: the model's sizes.
        slots: how many.
        dtype: of keys and values.
        blocks: into how many blocks those of self-attention are cut, at most.
        groups: into how many groups the slots are put, for each of which it is found how many blocks it needs.
    """
    heads, length = config.decoder_attention_heads, block_length(config, blocks)

    def keys_values(rows: int, places: int) -> KeysValues:
        shape = (rows, heads, places, config.d_model // heads)
        # Every array of its own: a donated buffer may stand in one place only.
        return KeysValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    starts = range(0, config.image_length, length)
    state = DecodeState(
        tokens=jnp.zeros((slots, config.image_length), jnp.int32),
        position=jnp.full(slots, config.image_length, jnp.int32),
        sampling=Sampling(
            seed=jnp.zeros((slots, 2), jnp.uint32),
            candidate=jnp.zeros(slots, jnp.int32),
            guidance_scale=jnp.ones(slots, jnp.float32),
            temperature=jnp.ones(slots, jnp.float32),
            top_k=jnp.zeros(slots, jnp.int32),
            top_p=jnp.ones(slots, jnp.float32),
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
