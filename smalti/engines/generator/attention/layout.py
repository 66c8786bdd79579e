"""The interface of a layout: how keys and values lie in memory, and the attention over them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smalti.models.layers import Shaped


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeysValues:
    """Keys and values of one attention, as a `CacheLayout` arranges them; the rows come first."""

    keys: Float[Shaped, "rows ..."]
    values: Float[Shaped, "rows ..."]


Blocks = tuple[KeysValues, ...]
"""Keys and values of one attention, split along the positions into separate arrays.

A step attends only over the first blocks, those that already hold tokens. With one large array, that part would have to
be copied, and the sums over a block would depend on which other blocks are attended to.
"""


@runtime_checkable
class CacheLayout(Protocol):
    """How keys and values lie in memory, and the attention of a decode step over them: one query per row.

    Hidden states are `[d_model, rows]`. Within a layout, a vector of each row is `[rows, ...]`.
    """

    positions_axis: ClassVar[int]
    """Axis of the positions in keys and values."""
    heads_axis: ClassVar[int]
    """Axis of the heads in keys and values, which several devices share."""
    has_blocks: ClassVar[bool]
    """Whether keys and values may be split along the positions into `Blocks`."""
    width_multiple: ClassVar[int]
    """What the width of the feed-forward block is padded to a multiple of."""

    def shape(self, rows: int, positions: int, d_model: int) -> tuple[int, ...]:
        """Returns the shape of keys, and of values."""

    def by_row(self, x: Float[Array, "d_model rows"]) -> Float[Array, "rows ..."]:
        """Arranges a vector of each row, such as its query."""

    def by_position(self, x: Float[Array, "d_model positions"]) -> Float[Array, "1 ..."]:
        """Arranges the keys or the values of all positions of one row."""

    def attend(
        self, queries: Float[Array, "rows ..."], past: KeysValues, mask: Bool[Array, "#rows positions"]
    ) -> Float[Array, "d_model rows"]:
        """Attends from one query per row over the positions that `mask` allows; softmax in float32.

        Keys and values with a single row are shared by all rows.
        """

    def attend_to_blocks(
        self,
        queries: Float[Array, "rows ..."],
        blocks: Sequence[KeysValues],
        position: Int[Array, " rows"],
        furthest: Int[Array, ""] | None = None,
    ) -> Float[Array, "d_model rows"]:
        """Attends from one query per row over the row's positions up to `position`; softmax in float32.

        Args:
            queries: one query per row.
            blocks: keys and values.
            position: position of each row.
            furthest: largest position among the rows whose results are used; blocks past it need not be read. None
                reads all.
        """


def put_into_blocks(
    layout: CacheLayout,
    blocks: Sequence[KeysValues],
    keys: Float[Array, "rows ..."],
    values: Float[Array, "rows ..."],
    position: Int[Array, " rows"],
) -> Blocks:
    """Returns the blocks with one more position per row written; a position beyond the blocks is dropped."""
    placed: list[KeysValues] = []
    start = 0
    before = (slice(None),) * (layout.positions_axis - 1)
    for block in blocks:
        length = block.keys.shape[layout.positions_axis]
        inside = position - start
        # An index past the end is dropped; a negative one would count from the end.
        inside = jnp.where(inside < 0, length, inside)

        def put(cache: Array, new: Array, index: Array) -> Array:
            return cache.at[(*before, index)].set(new, mode="drop")

        # Mapped over rows, so that rows stay on their devices.
        by_row = jax.vmap(put)
        placed.append(KeysValues(by_row(block.keys, keys, inside), by_row(block.values, values, inside)))
        start += length
    return tuple(placed)
