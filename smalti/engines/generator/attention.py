"""Attention of a decode step: one query per row, over cached keys and values."""

from collections.abc import Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smalti.engines.generator.state import Blocks, KeysValues
from smalti.models.layers import precision

_NEVER = jnp.finfo(jnp.float32).min


def split_heads(x: Float[Array, "features rows"], heads: int) -> Float[Array, "rows heads head_size"]:
    """Splits the features into heads."""
    return x.reshape(heads, -1, x.shape[1]).transpose(2, 0, 1)


def heads_first(
    x: Float[Array, "features positions"], heads: int
) -> Float[Array, "1 heads positions head_size"]:
    """Splits the features of one row's positions into heads."""
    return split_heads(x, heads).transpose(1, 0, 2)[None]


def attend(
    queries: Float[Array, "rows heads head_size"],
    past: KeysValues,
    mask: Bool[Array, "#rows positions"],
) -> Float[Array, "d_model rows"]:
    """Attends from one query per row over the positions that `mask` allows; softmax in float32.

    Keys and values with a single row are shared by all rows.
    """
    rows, _, head_size = queries.shape
    shared = past.keys.shape[0] == 1
    keys, values = (past.keys[0], past.values[0]) if shared else (past.keys, past.values)
    axes = "hld" if shared else "rhld"
    exact = precision(queries.dtype)
    scores = jnp.einsum(f"rhd,{axes}->rhl", queries * head_size**-0.5, keys, precision=exact)
    scores = jnp.where(mask[:, None], scores.astype(jnp.float32), _NEVER)
    weights = jax.nn.softmax(scores).astype(queries.dtype)
    return jnp.einsum(f"rhl,{axes}->rhd", weights, values, precision=exact).reshape(rows, -1).T


def put_into_blocks(
    blocks: Sequence[KeysValues],
    keys: Float[Array, "rows heads head_size"],
    values: Float[Array, "rows heads head_size"],
    position: Int[Array, " rows"],
) -> Blocks:
    """Returns the blocks with one more position per row written; a position beyond the blocks is dropped."""
    placed: list[KeysValues] = []
    start = 0
    for block in blocks:
        length = block.keys.shape[2]
        inside = position - start
        # An index past the end is dropped; a negative one would count from the end.
        inside = jnp.where(inside < 0, length, inside)

        def put(cache: Array, new: Array, index: Array) -> Array:
            return cache.at[:, index].set(new, mode="drop")

        # Mapped over rows, so that rows stay on their devices.
        by_row = jax.vmap(put)
        placed.append(KeysValues(by_row(block.keys, keys, inside), by_row(block.values, values, inside)))
        start += length
    return tuple(placed)


def attend_to_blocks(
    queries: Float[Array, "rows heads head_size"],
    blocks: Sequence[KeysValues],
    position: Int[Array, " rows"],
) -> Float[Array, "d_model rows"]:
    """Attends from one query per row over the row's positions up to `position`; softmax in float32.

    Each block is computed separately, and the sums over blocks run from the first to the last. A block past a row's
    position adds zeros, so the result is bit-identical however many blocks follow.
    """
    rows, _, head_size = queries.shape
    exact = precision(queries.dtype)
    queries = queries * head_size**-0.5
    scores: list[Array] = []
    start = 0
    for block in blocks:
        length = block.keys.shape[2]
        seen = start + jnp.arange(length) <= position[:, None]
        products = jnp.einsum("rhd,rhld->rhl", queries, block.keys, precision=exact)
        scores.append(jnp.where(seen[:, None], products.astype(jnp.float32), _NEVER))
        start += length
    largest = reduce(jnp.maximum, [each.max(-1) for each in scores])
    totals: list[Array] = []
    attended: list[Array] = []
    for block, each in zip(blocks, scores, strict=True):
        weights = jnp.exp(each - largest[..., None])
        totals.append(weights.sum(-1))
        attended.append(
            jnp.einsum(
                "rhl,rhld->rhd",
                weights.astype(queries.dtype),
                block.values,
                precision=exact,
                preferred_element_type=jnp.float32,
            )
        )
    together = reduce(jnp.add, attended) / reduce(jnp.add, totals)[..., None]
    return together.astype(queries.dtype).reshape(rows, -1).T


def attend_to_filled_blocks(
    queries: Float[Array, "rows heads head_size"],
    blocks: Sequence[KeysValues],
    position: Int[Array, " rows"],
    furthest: Int[Array, ""],
) -> Float[Array, "d_model rows"]:
    """Like `attend_to_blocks`, but reads only the blocks up to `furthest`.

    Args:
        queries: one query per row.
        blocks: all keys and values.
        position: position of each row.
        furthest: largest position among the rows whose results are used.
    """
    lengths = [block.keys.shape[2] for block in blocks]
    branches = [
        partial(lambda count, *arguments: attend_to_blocks(arguments[0], blocks[:count], arguments[1]), count)
        for count in range(1, len(blocks) + 1)
    ]
    attended: Array = jax.lax.switch(furthest // lengths[0], branches, queries, position)
    return attended
