"""Self-attention of one token in every layer, alone: the layouts of the generator, and what JAX has ready.

What is ready is `jax.nn.dot_product_attention`, as operations of XLA or as cuDNN's kernel.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from benchmarks.accelerator.results import Check
from benchmarks.measuring import Times, measure
from smalti.engines.generator.attention import KeysValues, put_into_blocks
from smalti.engines.generator.batch import BLOCKS
from smalti.engines.generator.partition import HEADS_FIRST, ROWS_FIRST, Partition
from smalti.models.bart_config import DalleBartConfig

TOLERANCE = 0.02
"""Of values up to about 1 that are computed in bfloat16."""

Cache = Any
Attend = Callable[[Float[Array, "d_model rows"], Cache, Int[Array, ""]], tuple[Array, Cache]]
"""Writes `x` as key and value of a position of every row, and attends with it over all positions up to that one."""


def time_attention(config: DalleBartConfig, slots: int, kind: str, repeats: int) -> Iterator[Times | Check]:
    """Yields a comparison with plain attention in float32, then the times of one token in all layers.

    The last positions of an image are generated, as many as a dispatch has, so that nearly everything is read. Each
    layer has keys and values of its own, because those of one layer would stay in a GPU's cache.

    Args:
        config: the shape of the model.
        slots: number of slots, each of two rows.
        kind: `heads-first`, `one-block` (heads first, not split into blocks), `rows-first`, `xla` or `cudnn`.
        repeats: number of runs to time.
    """
    rows, length = 2 * slots, config.image_length
    attend, arrange = _ready(config, kind) if kind in ("xla", "cudnn") else _of_layout(config, kind)
    steps = math.isqrt(length)

    def draw(number: int) -> tuple[Array, Array]:
        shape = (rows, config.d_model, length)
        keys, values = (
            jax.random.normal(jax.random.key(2 * number + each), shape, jnp.bfloat16) for each in (0, 1)
        )
        return keys, values

    def run(x: Array, caches: list[Cache]) -> tuple[Array, list[Cache]]:
        def step(number: Int[Array, ""], carried: tuple[Array, list[Cache]]) -> tuple[Array, list[Cache]]:
            x, before = carried
            after = []
            for cache in before:
                x, cache = attend(x, cache, length - steps + number)
                after.append(cache)
            return x, after

        return jax.lax.fori_loop(0, steps, step, (x, caches))

    # Half as large as keys, so that the newest key, which is the query, does not outweigh all others.
    x = jax.random.normal(jax.random.key(0), (config.d_model, rows), jnp.bfloat16) / 2
    numbers = range(1, config.decoder_layers + 1)
    caches = [arrange(*draw(number)) for number in numbers]
    found, _ = jax.jit(attend)(x, caches[0], jnp.int32(length - 1))
    wanted = _plain(config, np.asarray(x, np.float32), *(np.asarray(each, np.float32) for each in draw(1)))
    largest = float(np.abs(np.asarray(found, np.float32) - wanted).max())
    yield Check(
        check=f"attention, {kind}",
        passed=largest <= TOLERANCE,
        detail=f"largest difference {largest:.2g} of values up to {np.abs(wanted).max():.2g}",
    )
    compiled = jax.jit(run, donate_argnums=1)

    def once() -> None:
        nonlocal caches
        done, caches = compiled(x, caches)
        jax.block_until_ready((done, caches))

    yield measure(once, repeats).scaled(1 / steps)


def _of_layout(config: DalleBartConfig, kind: str) -> tuple[Attend, Callable[[Array, Array], Cache]]:
    """Returns the attention of a layout of the generator, and how keys and values get into it."""
    layout = Partition.over(cache_layout=ROWS_FIRST if kind == "rows-first" else HEADS_FIRST).layout_for(
        config
    )
    count = BLOCKS if kind == "heads-first" else 1

    def attend(x: Array, cache: Cache, position: Int[Array, ""]) -> tuple[Array, Cache]:
        positions = jnp.full(x.shape[1], position)
        by_row = layout.by_row(x)
        placed = put_into_blocks(layout, cache, by_row, by_row, positions)
        return layout.attend_to_blocks(by_row, placed, positions), placed

    def arrange(keys: Array, values: Array) -> Cache:
        arranged = (jnp.concatenate([layout.by_position(row) for row in each]) for each in (keys, values))
        split = (jnp.split(each, count, axis=layout.positions_axis) for each in arranged)
        return tuple(KeysValues(*each) for each in zip(*split, strict=True))

    return attend, arrange


def _ready(config: DalleBartConfig, kind: Any) -> tuple[Attend, Callable[[Array, Array], Cache]]:
    """Returns an attention of JAX, and how keys and values get into its `[rows, positions, heads, head_size]`."""
    heads = config.decoder_attention_heads

    def attend(x: Array, cache: Cache, position: Int[Array, ""]) -> tuple[Array, Cache]:
        query = x.T.reshape(x.shape[1], 1, heads, -1)
        keys, values = (jax.lax.dynamic_update_slice(each, query, (0, position, 0, 0)) for each in cache)
        attended = jax.nn.dot_product_attention(
            query,
            keys,
            values,
            key_value_seq_lengths=jnp.full(x.shape[1], position + 1, jnp.int32),
            implementation=kind,
        )
        return attended.reshape(x.shape[1], -1).T, (keys, values)

    def arrange(keys: Array, values: Array) -> Cache:
        return tuple(
            each.transpose(0, 2, 1).reshape(len(each), each.shape[2], heads, -1) for each in (keys, values)
        )

    return attend, arrange


def _plain(
    config: DalleBartConfig, x: np.ndarray, keys: np.ndarray, values: np.ndarray
) -> Float[np.ndarray, "d_model rows"]:
    """Returns the attention of the last position, whose key and value are the query, in float32."""
    rows, heads = x.shape[1], config.decoder_attention_heads
    query = x.T.reshape(rows, heads, -1)
    keys[:, :, -1] = values[:, :, -1] = x.T
    keys, values = (each.reshape(rows, heads, -1, each.shape[-1]) for each in (keys, values))
    scores = np.einsum("rhd,rhdl->rhl", query, keys) / math.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("rhl,rhdl->rhd", weights, values).reshape(rows, -1).T
