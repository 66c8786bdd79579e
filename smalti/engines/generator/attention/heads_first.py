"""The layout for CPUs and GPUs: keys and values `[rows, heads, positions, head_size]`.

Heads come before positions, so that a head's positions are contiguous.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import accumulate
from typing import ClassVar, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int8

from smalti.engines.generator.attention.layout import InTwoSteps, KeysValues, quantize, scaled
from smalti.models.layers import precision

Tree = TypeVar("Tree")

_NEVER = jnp.finfo(jnp.float32).min


@dataclass(frozen=True)
class HeadsFirst(InTwoSteps):
    """Keys and values `[rows, heads, positions, head_size]`; a vector of each row is `[rows, heads, head_size]`."""

    heads: int
    int8: bool = False
    positions_axis: ClassVar[int] = 2
    heads_axis: ClassVar[int] = 1
    has_blocks: ClassVar[bool] = True
    halves_apart: ClassVar[bool] = False
    norms_by_feature: ClassVar[bool] = False
    width_multiple: ClassVar[int] = 1

    def shape(self, rows: int, positions: int, d_model: int) -> tuple[int, ...]:
        """Returns the shape of keys, and of values."""
        return rows, self.heads, positions, d_model // self.heads

    def by_row(self, x: Float[Array, "d_model rows"]) -> Float[Array, "rows heads head_size"]:
        """Splits the features of each row into heads."""
        return x.reshape(self.heads, -1, x.shape[1]).transpose(2, 0, 1)

    def by_position(
        self, x: Float[Array, "d_model positions"]
    ) -> Float[Array, "1 heads positions head_size"]:
        """Splits the features of one row's positions into heads."""
        return self.by_row(x).transpose(1, 0, 2)[None]

    def shorten(
        self, x: Float[Array, "*vectors head_size"]
    ) -> tuple[Int8[Array, "*vectors head_size"], Float[Array, " *vectors"]]:
        """Returns keys or values as int8, and the scale of each head's vector."""
        return quantize(x)

    def attend(
        self,
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
        scores = jnp.einsum(
            f"rhd,{axes}->rhl", queries * head_size**-0.5, keys.astype(queries.dtype), precision=exact
        )
        scores = scaled(scores.astype(jnp.float32), past.key_scales)
        scores = jnp.where(mask[:, None], scores, _NEVER)
        weights = scaled(jax.nn.softmax(scores), past.value_scales).astype(queries.dtype)
        attended = jnp.einsum(f"rhl,{axes}->rhd", weights, values.astype(queries.dtype), precision=exact)
        return attended.reshape(rows, -1).T

    def attend_to_blocks(
        self,
        queries: Float[Array, "rows heads head_size"],
        blocks: Sequence[KeysValues],
        position: Int[Array, " rows"],
        furthest: Int[Array, ""] | None = None,
    ) -> Float[Array, "d_model rows"]:
        """Attends from one query per row over the row's positions up to `position`; softmax in float32.

        Each block is computed separately, and the sums over blocks run from the first to the last. A block past a row's
        position adds zeros, so the result is bit-identical however many blocks follow.

        Args:
            queries: one query per row.
            blocks: keys and values.
            position: position of each row.
            furthest: largest position among the rows whose results are used; blocks past it are not read. None reads
                all.
        """
        rows, _, head_size = queries.shape
        exact = precision(queries.dtype)
        queries = queries * head_size**-0.5
        starts = list(accumulate((block.keys.shape[2] for block in blocks), initial=0))[:-1]

        def if_filled(start: int, compute: Callable[[], Tree], otherwise: Callable[[], Tree]) -> Tree:
            """Computes what depends on a block; `otherwise` is what a block past every position would give."""
            if furthest is None or start == 0:
                return compute()
            computed: Tree = jax.lax.cond(furthest >= start, compute, otherwise)
            return computed

        def scores_of(start: int, block: KeysValues) -> Float[Array, "rows heads length"]:
            seen = start + jnp.arange(block.keys.shape[2]) <= position[:, None]
            products = jnp.einsum("rhd,rhld->rhl", queries, block.keys.astype(queries.dtype), precision=exact)
            products = scaled(products.astype(jnp.float32), block.key_scales)
            return jnp.where(seen[:, None], products, _NEVER)

        scores = [
            if_filled(
                start,
                partial(scores_of, start, block),
                partial(jnp.full, (*queries.shape[:2], block.keys.shape[2]), _NEVER, jnp.float32),
            )
            for start, block in zip(starts, blocks, strict=True)
        ]
        largest = reduce(jnp.maximum, [each.max(-1) for each in scores])

        def sums_of(block: KeysValues, scores: Float[Array, "rows heads length"]) -> tuple[Array, Array]:
            weights = jnp.exp(scores - largest[..., None])
            attended = jnp.einsum(
                "rhl,rhld->rhd",
                scaled(weights, block.value_scales).astype(queries.dtype),
                block.values.astype(queries.dtype),
                precision=exact,
                preferred_element_type=jnp.float32,
            )
            return weights.sum(-1), attended

        def no_sums() -> tuple[Array, Array]:
            return jnp.zeros(queries.shape[:2], jnp.float32), jnp.zeros(queries.shape, jnp.float32)

        sums = [
            if_filled(start, partial(sums_of, block, each), no_sums)
            for start, block, each in zip(starts, blocks, scores, strict=True)
        ]
        total, attended = (reduce(jnp.add, each) for each in zip(*sums, strict=True))
        return (attended / total[..., None]).astype(queries.dtype).reshape(rows, -1).T
