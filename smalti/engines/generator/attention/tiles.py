"""What the kernels for TPUs are made of: copies from the large memory, and products of all heads.

The scores of all heads are one product, as in `RowsFirst`.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from smalti.engines.generator.attention.layout import SCALES_AXIS, KeysValues
from smalti.models.layers import precision

LANES = 128
NEVER = float(jnp.finfo(jnp.float32).min)
DEPTH = 4
"""Blocks on the way or in use; a power of two."""
_TILES = {4: 8, 2: 8, 1: 32}
"""Positions in a tile of a TPU's memory, by the bytes of a number."""
_BLOCK_BYTES = 2**18
"""What is read at once of keys, and of values, at least; less would take longer to compute with than to read."""
_LEAST_POSITIONS = 64
"""Positions that are read at once, at least, for the same reason."""
_NEAR_BYTES = 12 * 2**20
"""What a kernel may take of the memory near the units, of which a v5e gives it 16 MiB."""


@dataclass(frozen=True)
class Plan:
    """The sizes of a kernel, all static."""

    slots: int
    sharers: int
    """Rows of a slot, which are at the same position."""
    heads: int
    width: int
    length: int
    """Positions that there are."""
    block: int
    """Positions that are read at once; divides `length`."""
    tile: int
    """Positions that are written at once, since a TPU's memory is in tiles; divides `block`."""
    itemsize: int
    """Bytes of a number of the keys and values."""
    kind: Any
    """Type of what is multiplied."""

    @classmethod
    def of(cls, shape: tuple[int, ...], dtype: DTypeLike, slots: int, heads: int, kind: DTypeLike) -> "Plan":
        """Returns the sizes for keys and values `[rows, positions, d_model]` of a type, multiplied in another."""
        rows, length, width = shape
        sharers, itemsize = rows // slots, jnp.dtype(dtype).itemsize
        tile = _TILES[itemsize]
        # Scales have positions in their lanes, of which a block of them is a multiple.
        multiple, least = (tile, _LEAST_POSITIONS) if itemsize > 1 else (LANES, LANES)
        least = max(least, _BLOCK_BYTES // (sharers * width * itemsize))
        sizes = range(-(-least // multiple) * multiple, length, multiple)
        block = next((size for size in sizes if length % size == 0), length)
        tile = block if block % tile else tile
        return cls(slots, sharers, heads, width, length, block, tile, itemsize, jnp.dtype(kind))

    def fits(self) -> bool:
        """Returns whether a TPU can run it.

        A narrow width would be padded to the lanes, and a large number of positions that has no divisor to read at once
        would not fit into the memory near the units.
        """
        near = 2 * DEPTH * self.sharers * self.block * self.width * self.itemsize
        return self.width % LANES == 0 and near <= _NEAR_BYTES

    @property
    def own(self) -> Bool[Array, "heads width"]:
        """The features of each head."""
        features = jax.lax.broadcasted_iota(jnp.int32, (self.heads, self.width), 1) // (
            self.width // self.heads
        )
        return features == jax.lax.broadcasted_iota(jnp.int32, (self.heads, self.width), 0)

    def score(
        self, query: Float[Array, "1 width"], keys: Array, scales: Float[Array, "heads positions"] | None
    ) -> Float[Array, "heads positions"]:
        """Returns the scores of one query, which is in float32."""
        query = query * (self.width // self.heads) ** -0.5
        scores = jax.lax.dot_general(
            jnp.where(self.own, query, 0).astype(self.kind), keys.astype(self.kind), (((1,), (1,)), ((), ())),
            precision=precision(self.kind), preferred_element_type=jnp.float32,
        )  # fmt: skip
        return scores if scales is None else scores * scales

    def weigh(
        self,
        weights: Float[Array, "heads positions"],
        values: Array,
        scales: Float[Array, "heads positions"] | None,
    ) -> Float[Array, "heads width"]:
        """Returns the sums of the values by the weights of each head; a head's own features are among them."""
        weights = weights if scales is None else weights * scales
        return jax.lax.dot_general(
            weights.astype(self.kind), values.astype(self.kind), (((1,), (0,)), ((), ())),
            precision=precision(self.kind), preferred_element_type=jnp.float32,
        )  # fmt: skip

    def join(self, by_head: Float[Array, " heads #width"]) -> Float[Array, "1 width"]:
        """Returns each head's own features, or one number of a head for each of them."""
        return jnp.where(self.own, by_head, 0).sum(0, keepdims=True)


@dataclass(frozen=True)
class Cached:
    """Keys, values or their scales in the chip's large memory, and what is near of them."""

    far: Any
    """All rows, in the large memory."""
    near: Any
    """Blocks that were read, `DEPTH` of them."""
    arrived: Any
    """Semaphores of what is read."""
    axis: int
    """Axis of the positions."""

    def read(self, plan: Plan, slot: Array, block: Array, at: Array) -> Any:
        """Returns the copy of a block from the large memory."""
        return pltpu.make_async_copy(
            self.at(plan, slot, block * plan.block, plan.block), self.near.at[at], self.arrived.at[at]
        )

    def at(self, plan: Plan, slot: Array, start: Array, size: int) -> Any:
        """Returns some positions of a slot's rows in the large memory."""
        rows = pl.ds(slot * plan.sharers, plan.sharers)
        if size == plan.length:
            return self.far.at[rows]
        positions = pl.ds(pl.multiple_of(start, size), size)
        return self.far.at[(rows, *(slice(None),) * (self.axis - 1), positions)]


def arrays(cached: KeysValues) -> tuple[list[Array], tuple[int, ...]]:
    """Returns keys and values, and their scales where they are int8, each with the axis of its positions."""
    found = [
        each
        for each in (cached.keys, cached.values, cached.key_scales, cached.value_scales)
        if each is not None
    ]
    return found, (1, 1, SCALES_AXIS, SCALES_AXIS)[: len(found)]


def room(plan: Plan, count: int, array: Array, axis: int, positions: int) -> Any:
    """Returns room near the units for some positions of a slot's rows, `count` times."""
    shape = [count, plan.sharers, *array.shape[1:]]
    shape[axis + 1] = positions
    return pltpu.VMEM(tuple(shape), array.dtype)


def far_and_near() -> tuple[Any, Any]:
    """Returns the places of arguments: in the chip's large memory, and near the units."""
    return pl.BlockSpec(memory_space=pl.ANY), pl.BlockSpec(memory_space=pltpu.VMEM)
