"""The layout for TPUs: keys and values `[rows, positions, d_model]`.

A TPU lays the last axis in lanes of 128, so that heads of 64 as the last axis would make half of every cache padding.
Here the last axis is the whole width, and nothing is padded, transposed or copied. The queries of a row become a
block-diagonal matrix `[d_model, heads]`, so that the scores of all heads are one product; of the second product
`[heads, d_model]`, only the diagonal blocks are kept. That is as many more products as there are heads, on units that
otherwise wait for the memory.

On TPUs, a step's attention is two kernels, `self_kernel.py` and `cross_kernel.py`; XLA has the rest.

Devices that share the heads have a block-diagonal matrix each, of their own heads. With one matrix for all, every score
would be a sum over all devices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Int8

from smalti.engines.generator.attention.cross_kernel import attend_to_prompts
from smalti.engines.generator.attention.layout import (
    Blocks,
    InTwoSteps,
    KeysValues,
    quantize,
    scaled,
)
from smalti.engines.generator.attention.self_kernel import extend
from smalti.engines.generator.attention.tiles import Plan
from smalti.models.layers import precision

_NEVER = jnp.finfo(jnp.float32).min


@dataclass(frozen=True)
class RowsFirst(InTwoSteps):
    """Keys and values `[rows, positions, d_model]`; a vector of each row is `[rows, d_model]`."""

    heads: int
    sharers: int = 1
    """Number of devices that share the heads."""
    int8: bool = False
    mesh: Mesh | None = None
    """Devices that run the kernels, by axes that split the slots and the heads; None for operations of XLA."""
    positions_axis: ClassVar[int] = 1
    heads_axis: ClassVar[int] = 2
    has_blocks: ClassVar[bool] = False
    halves_apart: ClassVar[bool] = True
    norms_by_feature: ClassVar[bool] = True
    # The units compute 128 columns at a time, and a narrower array would be copied into a wider one at every step.
    width_multiple: ClassVar[int] = 128

    def shape(self, rows: int, positions: int, d_model: int) -> tuple[int, ...]:
        """Returns the shape of keys, and of values."""
        return rows, positions, d_model

    def by_row(self, x: Float[Array, "d_model rows"]) -> Float[Array, "rows d_model"]:
        """Puts rows before features."""
        return x.T

    def by_position(self, x: Float[Array, "d_model positions"]) -> Float[Array, "1 positions d_model"]:
        """Puts positions before features."""
        return x.T[None]

    def shorten(
        self, x: Float[Array, "rows *positions d_model"]
    ) -> tuple[Int8[Array, "rows *positions d_model"], Float[Array, "rows heads *positions"]]:
        """Returns keys or values as int8, and the scale of each head's vector."""
        short, scales = quantize(x.reshape(*x.shape[:-1], self.heads, -1))
        # Positions are last, where a TPU has lanes of 128; there are fewer heads.
        return short.reshape(x.shape), jnp.moveaxis(scales, -1, 1)

    def attend(
        self,
        queries: Float[Array, "rows d_model"],
        past: KeysValues,
        mask: Bool[Array, "#rows positions"],
    ) -> Float[Array, "d_model rows"]:
        """Attends over the positions that `mask` allows."""
        rows, d_model = queries.shape
        exact = precision(queries.dtype)

        def share(x: Float[Array, "*leading d_model"]) -> Float[Array, "*leading sharers features"]:
            return x.reshape(*x.shape[:-1], self.sharers, -1)

        def of_heads(scales: Float[Array, "... heads positions"] | None) -> Array | None:
            if scales is None:
                return None
            return scales.reshape(*scales.shape[:-2], self.sharers, -1, scales.shape[-1])

        # Each head's features among those of its device; the blocks of the diagonal.
        heads, features = self.heads // self.sharers, d_model // self.sharers
        own = jnp.arange(heads)[:, None] == jnp.arange(features) // (features // heads)
        split_queries = share(queries * (d_model // self.heads) ** -0.5)
        by_head = jnp.where(own, split_queries[:, :, None], 0).astype(queries.dtype)
        shared = past.keys.shape[0] == 1
        keys, values = (past.keys[0], past.values[0]) if shared else (past.keys, past.values)
        axes = "psm" if shared else "rpsm"
        scores = jnp.einsum(
            f"rshm,{axes}->rshp",
            by_head,
            share(keys.astype(queries.dtype)),
            precision=exact,
            preferred_element_type=jnp.float32,
        )
        scores = jnp.where(mask[:, None, None], scaled(scores, of_heads(past.key_scales)), _NEVER)
        weights = scaled(jax.nn.softmax(scores), of_heads(past.value_scales)).astype(queries.dtype)
        attended = jnp.einsum(
            f"rshp,{axes}->rshm",
            weights,
            share(values.astype(queries.dtype)),
            precision=exact,
            preferred_element_type=jnp.float32,
        )
        return jnp.where(own, attended, 0).sum(2).astype(queries.dtype).reshape(rows, d_model).T

    def attend_to_blocks(
        self,
        queries: Float[Array, "rows d_model"],
        blocks: Sequence[KeysValues],
        position: Int[Array, " rows"],
        furthest: Int[Array, ""] | None = None,
    ) -> Float[Array, "d_model rows"]:
        """Attends over the row's positions up to `position`; the positions are one block."""
        (past,) = blocks
        seen = jnp.arange(past.keys.shape[1]) <= position[:, None]
        return self.attend(queries, past, seen)

    def extend(
        self,
        queries: Float[Array, "rows d_model"],
        keys: Float[Array, "rows d_model"],
        values: Float[Array, "rows d_model"],
        blocks: Sequence[KeysValues],
        position: Int[Array, " slots"],
        furthest: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "d_model rows"], Blocks]:
        """Writes one more position of every row, and attends over the positions up to it."""
        (past,) = blocks
        mesh = self._runs_kernels(past, len(position), queries.dtype)
        if mesh is None:
            return super().extend(queries, keys, values, blocks, position, furthest)
        vectors = PartitionSpec(*mesh.axis_names)
        cached = self._split(vectors)
        run = self._on_each(
            mesh, extend, (*(vectors,) * 3, cached, PartitionSpec(vectors[0])), (vectors, cached)
        )
        attended, extended = run(queries, keys, values, jax.tree.leaves(past), position)
        return attended.astype(queries.dtype).T, (KeysValues(*extended),)

    def attend_to_prompts(
        self,
        queries: Float[Array, "rows d_model"],
        prompts: KeysValues,
        mask: Bool[Array, "slots positions"],
        empty: KeysValues,
        empty_mask: Bool[Array, "1 empty_positions"],
    ) -> Float[Array, "d_model rows"]:
        """Attends from two queries per slot: one over the slot's prompt, then one over the empty prompt."""
        mesh = self._runs_kernels(prompts, len(mask), queries.dtype)
        if mesh is None:
            return super().attend_to_prompts(queries, prompts, mask, empty, empty_mask)
        slots, heads = mesh.axis_names
        vectors, empty_split = PartitionSpec(slots, heads), self._split(PartitionSpec(None, heads))
        split = (vectors, self._split(vectors), PartitionSpec(slots), empty_split, PartitionSpec())
        run = self._on_each(mesh, attend_to_prompts, split, vectors)
        attended = run(queries, jax.tree.leaves(prompts), mask, jax.tree.leaves(empty), empty_mask)
        return attended.astype(queries.dtype).T

    def _runs_kernels(self, past: KeysValues, slots: int, dtype: DTypeLike) -> Mesh | None:
        """Returns the devices that run kernels over these keys and values; None where XLA's operations do."""
        mesh = self.mesh
        if mesh is None or not self._on_tpu(mesh):
            return mesh
        rows, length, width = past.keys.shape
        plan = Plan.of((rows, length, width // self.sharers), past.keys.dtype, slots, 1, dtype)
        return mesh if plan.fits() else None

    def _split(self, rows_and_heads: PartitionSpec) -> list[PartitionSpec]:
        """Returns how the arrays of keys and values are split over the devices."""
        rows, heads = rows_and_heads
        return [PartitionSpec(rows, None, heads)] * 2 + [rows_and_heads] * 2 * self.int8

    def _on_each(
        self, mesh: Mesh, kernel: Callable[..., Any], split: tuple[Any, ...], result: Any
    ) -> Callable[..., Any]:
        """Returns a kernel that each device runs on its own slots and heads; others than TPUs interpret it.

        Keys and values are passed as lists of their arrays.
        """
        own = partial(kernel, heads=self.heads // self.sharers, interpret=not self._on_tpu(mesh))

        def run(*arguments: Any) -> Any:
            done = own(*(KeysValues(*each) if isinstance(each, list) else each for each in arguments))
            return jax.tree.map(
                lambda each: jax.tree.leaves(each) if isinstance(each, KeysValues) else each,
                done, is_leaf=lambda each: isinstance(each, KeysValues),
            )  # fmt: skip

        run_on_each: Callable[..., Any] = jax.shard_map(
            run, mesh=mesh, in_specs=split, out_specs=result, check_vma=False
        )
        return run_on_each

    @staticmethod
    def _on_tpu(mesh: Mesh) -> bool:
        return bool(mesh.devices.flat[0].platform == "tpu")
