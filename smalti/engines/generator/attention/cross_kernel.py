"""The cross-attention of a decode step as a kernel for TPUs: each slot over its own prompt and over the empty one.

As operations of XLA it is a dozen for each layer, and each takes longer to start than to run.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from smalti.engines.generator.attention.layout import KeysValues
from smalti.engines.generator.attention.tiles import DEPTH, NEVER, Cached, Plan, arrays, far_and_near, room


def attend_to_prompts(
    queries: Float[Array, "rows d_model"],
    prompts: KeysValues,
    mask: Bool[Array, "slots positions"],
    empty: KeysValues,
    empty_mask: Bool[Array, "1 empty_positions"],
    *,
    heads: int,
    interpret: Any = False,
) -> Float[Array, "rows d_model"]:
    """Attends from two queries per slot: one over the slot's prompt, then one over the empty prompt.

    Args:
        queries: the queries.
        prompts: keys and values of each slot's prompt, `[slots, positions, d_model]`.
        mask: True at text.
        empty: keys and values of the empty prompt, which all slots share.
        empty_mask: True at its text.
        heads: number of heads.
        interpret: as in `extend`.

    Returns:
        What was attended to, in float32.
    """
    plan = Plan.of(prompts.keys.shape, prompts.keys.dtype, len(mask), heads, queries.dtype)
    # A prompt is short: all of it at once.
    plan = replace(plan, block=plan.length)
    (cached, axes), (shared, _) = arrays(prompts), arrays(empty)
    far, near = far_and_near()
    rows, length = len(queries), empty.keys.shape[1]
    attended: Array = pl.pallas_call(
        partial(_run, plan, axes),
        out_shape=jax.ShapeDtypeStruct(queries.shape, jnp.float32),
        in_specs=(*(near,) * 3, *(near,) * len(shared), *(far,) * len(cached)),
        out_specs=near,
        scratch_shapes=[
            part
            for array, axis in zip(cached, axes, strict=True)
            for part in (room(plan, DEPTH, array, axis, plan.block), pltpu.SemaphoreType.DMA((DEPTH,)))
        ],
        cost_estimate=pl.CostEstimate(
            flops=2 * 2 * plan.slots * heads * plan.width * (plan.length + length),
            transcendentals=plan.slots * heads * (plan.length + length),
            bytes_accessed=sum(array.nbytes for array in (*cached, *shared)) + 2 * 4 * rows * plan.width,
        ),
        interpret=interpret,
        name="attend_to_prompts",
    )(queries.astype(jnp.float32), mask.astype(jnp.int32), empty_mask.astype(jnp.int32), *shared, *cached)
    return attended


def _run(plan: Plan, axes: tuple[int, ...], queries: Any, mask: Any, empty_mask: Any, *refs: Any) -> None:
    """The kernel: a loop over the slots."""
    count = len(axes)
    shared, far, attended, scratch = (
        refs[:count],
        refs[count : 2 * count],
        refs[2 * count],
        refs[2 * count + 1 :],
    )
    near, arrived = scratch[::2], scratch[1::2]
    cached = [Cached(*each) for each in zip(far, near, arrived, axes, strict=True)]

    def start(slot: Array) -> None:
        for array in cached:
            array.read(plan, slot, jnp.int32(0), slot % DEPTH).start()

    def attend(row: Array, seen: Array, keys: Array, values: Array, *scales: Array) -> None:
        key_scales, value_scales = scales or (None, None)
        scores = jnp.where(seen != 0, plan.score(queries[pl.ds(row, 1), :], keys, key_scales), NEVER)
        weights = jnp.exp(scores - scores.max(1, keepdims=True))
        sums = plan.weigh(weights, values, value_scales)
        attended[pl.ds(row, 1), :] = plan.join(sums / weights.sum(1, keepdims=True))

    for slot in range(min(DEPTH - 1, plan.slots)):
        start(jnp.int32(slot))

    @pl.loop(0, plan.slots)
    def _(slot: Array) -> None:
        @pl.when(slot + DEPTH - 1 < plan.slots)
        def _() -> None:
            start(slot + DEPTH - 1)

        for array in cached:
            array.read(plan, slot, jnp.int32(0), slot % DEPTH).wait()
        attend(2 * slot, mask[pl.ds(slot, 1), :], *(array.near[slot % DEPTH, 0] for array in cached))
        attend(2 * slot + 1, empty_mask[...], *(array[0] for array in shared))
