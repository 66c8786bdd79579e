"""The self-attention of a decode step as a kernel for TPUs, over keys and values `[rows, positions, d_model]`.

XLA reads all positions of every row, whether they are drawn or not, and writes the new position by a scatter, for which
it copies keys and values of int8. This kernel writes the new position where it belongs, reads only the blocks of
positions that a slot has reached, and reads the next blocks while it computes with one. Softmax is computed block by
block (Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from smalti.engines.generator.attention.layout import KeysValues
from smalti.engines.generator.attention.tiles import (
    DEPTH,
    LANES,
    NEVER,
    Cached,
    Plan,
    arrays,
    far_and_near,
    room,
)

_WRITES = 2
"""Slots whose new positions are on the way to the large memory."""


@dataclass(frozen=True)
class _Extended(Cached):
    """What is cached, and gets one more position."""

    written: Any
    """Tiles that are being written, `_WRITES` of them."""
    left: Any
    """Semaphores of what is written."""

    def write(self, plan: Plan, slot: Array, position: Array) -> Any:
        """Returns the copy of the tile with a position to the large memory."""
        at, size = slot % _WRITES, self.written.shape[self.axis + 1]
        return pltpu.make_async_copy(
            self.written.at[at], self.at(plan, slot, position // size * size, size), self.left.at[at]
        )

    def put(self, at: Array, row: int, inside: Array, new: Array, slot: Array) -> None:
        """Puts one position of a row, `new`, into the block that was read, and its tile among those to write."""
        size = self.written.shape[self.axis + 1]
        start = pl.multiple_of(inside // size * size, size)
        here = (at, row, *(slice(None),) * (self.axis - 1), pl.ds(start, size))
        old = self.near[here]
        hit = jax.lax.broadcasted_iota(jnp.int32, old.shape, self.axis - 1) == inside - start
        fresh = jnp.where(hit, new, old.astype(jnp.float32)).astype(old.dtype)
        self.near[here] = fresh
        self.written[slot % _WRITES, row] = fresh


def extend(
    queries: Float[Array, "rows d_model"],
    keys: Float[Array, "rows d_model"],
    values: Float[Array, "rows d_model"],
    past: KeysValues,
    position: Int[Array, " slots"],
    *,
    heads: int,
    interpret: Any = False,
) -> tuple[Float[Array, "rows d_model"], KeysValues]:
    """Writes one more position of every row, and attends from one query per row over the positions up to it.

    Args:
        queries: one query per row.
        keys: the new key of each row.
        values: the new value of each row.
        past: keys and values `[rows, positions, d_model]`, as int8 with scales `[rows, heads, positions]`; updated in
            place.
        position: position of each slot, whose rows follow one another. Later positions are not read.
        heads: number of heads.
        interpret: runs the kernel as plain operations, on a CPU; `pltpu.InterpretParams` has a TPU's memory and copies.

    Returns:
        What was attended to, in float32, and the updated keys and values.
    """
    plan = Plan.of(past.keys.shape, past.keys.dtype, len(position), heads, queries.dtype)
    cached, axes = arrays(past)
    far, near = far_and_near()
    scratch: list[Any] = []
    for array, axis in zip(cached, axes, strict=True):
        tile = plan.tile if axis == 1 else plan.block
        scratch += [room(plan, DEPTH, array, axis, plan.block), room(plan, _WRITES, array, axis, tile)]
        scratch += [pltpu.SemaphoreType.DMA((DEPTH,)), pltpu.SemaphoreType.DMA((_WRITES,))]
    sums = pltpu.VMEM((plan.sharers, heads, LANES), jnp.float32)
    attended, *updated = pl.pallas_call(
        partial(_run, plan, axes),
        out_shape=(
            jax.ShapeDtypeStruct(queries.shape, jnp.float32),
            *(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in cached),
        ),
        in_specs=(pl.BlockSpec(memory_space=pltpu.SMEM), *(near,) * 3, *(far,) * len(cached)),
        out_specs=(near, *(far,) * len(cached)),
        input_output_aliases={4 + each: 1 + each for each in range(len(cached))},
        scratch_shapes=(*scratch, sums, sums, pltpu.VMEM((plan.sharers, heads, plan.width), jnp.float32)),
        cost_estimate=_cost(plan, cached),
        interpret=interpret,
        name="extend",
    )(position, *(each.astype(jnp.float32) for each in (queries, keys, values)), *cached)
    return attended, KeysValues(*updated)


def _cost(plan: Plan, cached: Sequence[Array]) -> pl.CostEstimate:
    """Returns what the compiler is told of the kernel, if every slot is at the last position.

    The two products multiply each row's keys and values with a column for each head. The bytes are those of all keys
    and values, of the vectors in float32, and of the tiles that are written.
    """
    rows = plan.slots * plan.sharers
    tiles = sum(array.nbytes // plan.length * (plan.tile if array.ndim == 3 else 1) for array in cached[:2])
    return pl.CostEstimate(
        flops=2 * 2 * rows * plan.heads * plan.width * plan.length,
        transcendentals=rows * plan.heads * plan.length,
        bytes_accessed=sum(array.nbytes for array in cached) + tiles + 4 * 4 * rows * plan.width,
    )


def _run(plan: Plan, axes: Sequence[int], position_ref: Any, *refs: Any) -> None:
    """The kernel: a loop over the blocks of all slots, one after the other."""
    count = len(axes)
    queries, new, attended, far = refs[0], refs[1:3], refs[3 + count], refs[4 + count : 4 + 2 * count]
    scratch = refs[4 + 2 * count :]
    cached = []
    for which, axis in enumerate(axes):
        block, tile, arrived, left = scratch[4 * which : 4 * which + 4]
        cached.append(_Extended(far[which], block, arrived, axis, tile, left))
    largest, total, sums = scratch[4 * count :]
    short = count == 4

    def last(slot: Array) -> Array:
        return position_ref[slot] // plan.block

    def after(slot: Array, block: Array) -> tuple[Array, Array]:
        ended = block == last(jnp.minimum(slot, plan.slots - 1))
        return jnp.where(ended, slot + 1, slot), jnp.where(ended, 0, block + 1)

    def each(copies: Callable[[_Extended], Any], act: str) -> None:
        for array in cached:
            getattr(copies(array), act)()

    items = jax.lax.fori_loop(0, plan.slots, lambda slot, items: items + last(slot) + 1, jnp.int32(0))
    first = (jnp.int32(0), jnp.int32(0))
    ahead = first
    for at in range(DEPTH - 1):

        @pl.when(at < items)
        def _(ahead: tuple[Array, Array] = ahead, at: int = at) -> None:
            each(lambda array: array.read(plan, *ahead, jnp.int32(at)), "start")

        ahead = after(*ahead)

    def wait_for_write(slot: Array) -> None:
        each(lambda array: array.write(plan, slot, position_ref[slot]), "wait")

    def put(slot: Array, block: Array, at: Array) -> None:
        """Puts the new position of a slot into its last block, and starts to write it."""

        @pl.when(slot >= _WRITES)
        def _() -> None:
            wait_for_write(slot - _WRITES)

        inside = position_ref[slot] - block * plan.block
        for row in range(plan.sharers):
            for which in range(2):
                vector = new[which][pl.ds(slot * plan.sharers + row, 1), :]
                if short:
                    # As `quantize` in `layout`, whose vectors are those of a head.
                    widest = jnp.where(plan.own, jnp.abs(vector), 0).max(1, keepdims=True)
                    scales = jnp.maximum(widest, 1e-30) / 127
                    vector = jnp.round(vector / plan.join(scales))
                    cached[2 + which].put(at, row, inside, scales, slot)
                cached[which].put(at, row, inside, vector, slot)
        each(lambda array: array.write(plan, slot, position_ref[slot]), "start")

    def attend(slot: Array, block: Array, at: Array, row: int) -> None:
        """Adds a block of a row to its sums."""
        key_scales, value_scales = (array.near[at, row] for array in cached[2:]) if short else (None, None)
        query = queries[pl.ds(slot * plan.sharers + row, 1), :]
        scores = plan.score(query, cached[0].near[at, row], key_scales)
        seen = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1) <= position_ref[slot] - block * plan.block
        scores = jnp.where(seen, scores, NEVER)
        before = largest[row]
        now = jnp.maximum(before, scores.max(1, keepdims=True))
        weights, shrink = jnp.exp(scores - now[:, :1]), jnp.exp(before - now)
        largest[row] = now
        total[row] = total[row] * shrink + weights.sum(1, keepdims=True)
        sums[row] = sums[row] * shrink[:, :1] + plan.weigh(weights, cached[1].near[at, row], value_scales)

    def item(index: Array, carry: tuple[tuple[Array, Array], tuple[Array, Array]]) -> Any:
        (slot, block), ahead = carry
        at = index % DEPTH

        @pl.when(index + DEPTH - 1 < items)
        def _() -> None:
            each(lambda array: array.read(plan, *ahead, (index + DEPTH - 1) % DEPTH), "start")

        each(lambda array: array.read(plan, slot, block, at), "wait")

        @pl.when(block == 0)
        def _() -> None:
            largest[...] = jnp.full_like(largest, NEVER)
            total[...] = jnp.zeros_like(total)
            sums[...] = jnp.zeros_like(sums)

        @pl.when(block == last(slot))
        def _() -> None:
            put(slot, block, at)

        for row in range(plan.sharers):
            attend(slot, block, at, row)

        @pl.when(block == last(slot))
        def _() -> None:
            for row in range(plan.sharers):
                attended[pl.ds(slot * plan.sharers + row, 1), :] = plan.join(sums[row] / total[row][:, :1])

        return after(slot, block), after(*ahead)

    jax.lax.fori_loop(0, items, item, (first, ahead))
    for left_over in range(max(plan.slots - _WRITES, 0), plan.slots):
        wait_for_write(jnp.int32(left_over))
