"""The interface of a layout: how keys and values lie in memory, and the attention over them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int8, Real

from smalti.models.layers import Shaped

SCALES_AXIS = 2
"""Axis of the positions in the scales of keys and values, in every layout."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeysValues:
    """Keys and values of one attention, as a `CacheLayout` arranges them; the rows come first."""

    keys: Real[Shaped, "rows ..."]
    values: Real[Shaped, "rows ..."]
    key_scales: Float[Shaped, "rows heads ..."] | None = None
    """Scale of each head's key at each position (axis 2), where keys and values are int8."""
    value_scales: Float[Shaped, "rows heads ..."] | None = None


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
    halves_apart: ClassVar[bool]
    """Whether the logits of the conditional halves of all slots follow one another, then those of the others.

    In turn, two numbers would be in each row of a TPU's lanes of 128.
    """
    norms_by_feature: ClassVar[bool]
    """Whether a norm finishes mean and deviation for each feature anew, in the operation that needs them.

    A TPU takes longer to start an operation for a few numbers than to repeat them.
    """

    @property
    def int8(self) -> bool:
        """Whether keys and values are kept as int8, with a scale for each head and position."""

    @property
    def heads(self) -> int:
        """Number of heads."""

    def shape(self, rows: int, positions: int, d_model: int) -> tuple[int, ...]:
        """Returns the shape of keys, and of values."""

    def by_row(self, x: Float[Array, "d_model rows"]) -> Float[Array, "rows ..."]:
        """Arranges a vector of each row, such as its query."""

    def by_position(self, x: Float[Array, "d_model positions"]) -> Float[Array, "1 ..."]:
        """Arranges the keys or the values of all positions of one row."""

    def shorten(
        self, x: Float[Array, "rows ..."]
    ) -> tuple[Int8[Array, "rows ..."], Float[Array, "rows ..."]]:
        """Returns keys or values as int8, of each row or of all positions of one row, and each head's scales."""

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

    def extend(
        self,
        queries: Float[Array, "rows ..."],
        keys: Float[Array, "rows ..."],
        values: Float[Array, "rows ..."],
        blocks: Sequence[KeysValues],
        position: Int[Array, " slots"],
        furthest: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "d_model rows"], Blocks]:
        """Writes one more position of every row, and attends over the positions up to it.

        Args:
            queries: one query per row.
            keys: the new key of each row.
            values: the new value of each row.
            blocks: keys and values.
            position: position of each slot; the rows of a slot follow one another.
            furthest: as in `attend_to_blocks`.

        Returns:
            What was attended to, and the blocks with the new position.
        """

    def attend_to_prompts(
        self,
        queries: Float[Array, "rows ..."],
        prompts: KeysValues,
        mask: Bool[Array, "slots positions"],
        empty: KeysValues,
        empty_mask: Bool[Array, "1 empty_positions"],
    ) -> Float[Array, "d_model rows"]:
        """Attends from two queries per slot: one over the slot's prompt, then one over the empty prompt.

        Args:
            queries: the queries.
            prompts: keys and values of each slot's prompt.
            mask: True at text.
            empty: keys and values of the empty prompt, with a single row.
            empty_mask: True at its text.
        """


def quantize(
    x: Float[Array, "*vectors features"],
) -> tuple[Int8[Array, "*vectors features"], Float[Array, " *vectors"]]:
    """Returns vectors in int8, and the scale of each, with which its largest component is 127."""
    wide = x.astype(jnp.float32)
    scales = jnp.maximum(jnp.abs(wide).max(-1), 1e-30) / 127
    return jnp.round(wide / scales[..., None]).astype(jnp.int8), scales


def scaled(x: Float[Array, "..."], scales: Float[Array, "..."] | None) -> Float[Array, "..."]:
    """Returns `x * scales`, or `x` where nothing is scaled."""
    return x if scales is None else x * scales


def keep(layout: CacheLayout, keys: Float[Array, "rows ..."], values: Float[Array, "rows ..."]) -> KeysValues:
    """Returns keys and values of each row, or of all positions of one row, in the type that they are kept in."""
    if not layout.int8:
        return KeysValues(keys, values)
    (keys, key_scales), (values, value_scales) = layout.shorten(keys), layout.shorten(values)
    return KeysValues(keys, values, key_scales, value_scales)


def empty(layout: CacheLayout, rows: int, positions: int, d_model: int, dtype: Any) -> KeysValues:
    """Returns keys and values of zeros."""

    def zeros() -> tuple[Array, Array | None]:
        # Separate arrays: a buffer can be donated only once.
        kept = jnp.zeros(layout.shape(rows, positions, d_model), jnp.int8 if layout.int8 else dtype)
        return kept, jnp.zeros((rows, layout.heads, positions), jnp.float32) if layout.int8 else None

    (keys, key_scales), (values, value_scales) = zeros(), zeros()
    return KeysValues(keys, values, key_scales, value_scales)


def combine(
    positions_axis: int,
    function: Callable[[Array, Array, int], Array],
    first: KeysValues,
    second: KeysValues,
) -> KeysValues:
    """Returns the results of a function of the arrays of both and the axis of their positions.

    Args:
        positions_axis: axis of the positions in keys and values, as the layout has it.
        function: the function.
        first: keys and values; the first argument of the function.
        second: keys and values; the second argument of the function.
    """

    def scales(first: Array | None, second: Array | None) -> Array | None:
        if first is None or second is None:
            return None
        return function(first, second, SCALES_AXIS)

    return KeysValues(
        function(first.keys, second.keys, positions_axis),
        function(first.values, second.values, positions_axis),
        scales(first.key_scales, second.key_scales),
        scales(first.value_scales, second.value_scales),
    )


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
    new = keep(layout, keys, values)
    for block in blocks:
        length = block.keys.shape[layout.positions_axis]
        inside = position - start
        # An index past the end is dropped; a negative one would count from the end.
        inside = jnp.where(inside < 0, length, inside)

        def put(cache: Array, new: Array, axis: int, inside: Array = inside) -> Array:
            before = (slice(None),) * (axis - 1)
            # Mapped over rows, so that rows stay on their devices.
            by_row = jax.vmap(lambda cache, new, index: cache.at[(*before, index)].set(new, mode="drop"))
            result: Array = by_row(cache, new, inside)
            return result

        placed.append(combine(layout.positions_axis, put, block, new))
        start += length
    return tuple(placed)


class InTwoSteps:
    """What `CacheLayout` asks for of a decode step, each in two steps of a layout's other methods."""

    def extend(
        self: CacheLayout,
        queries: Float[Array, "rows ..."],
        keys: Float[Array, "rows ..."],
        values: Float[Array, "rows ..."],
        blocks: Sequence[KeysValues],
        position: Int[Array, " slots"],
        furthest: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "d_model rows"], Blocks]:
        """Writes one more position of every row, then attends over the positions up to it."""
        by_row = jnp.repeat(position, len(queries) // len(position))
        placed = put_into_blocks(self, blocks, keys, values, by_row)
        return self.attend_to_blocks(queries, placed, by_row, furthest), placed

    def attend_to_prompts(
        self: CacheLayout,
        queries: Float[Array, "rows ..."],
        prompts: KeysValues,
        mask: Bool[Array, "slots positions"],
        empty: KeysValues,
        empty_mask: Bool[Array, "1 empty_positions"],
    ) -> Float[Array, "d_model rows"]:
        """Attends from the queries of one half of the slots, then from those of the other."""
        halves = queries.reshape(-1, 2, *queries.shape[1:])
        attended = self.attend(halves[:, 0], prompts, mask), self.attend(halves[:, 1], empty, empty_mask)
        return jnp.stack(attended, axis=2).reshape(-1, len(queries))
