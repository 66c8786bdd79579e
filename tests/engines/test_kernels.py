"""The kernels for TPUs, interpreted: they give what XLA's operations give, and read only what they should."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from smalti.engines.generator.attention import KeysValues, RowsFirst, keep
from smalti.engines.generator.attention.cross_kernel import attend_to_prompts
from smalti.engines.generator.attention.self_kernel import extend
from smalti.engines.generator.attention.tiles import Plan

WIDTH, HEADS = 256, 4
TPU: Any = pltpu.InterpretParams()
"""Interprets with a TPU's memories, semaphores and copies; memory that was never written is NaN."""


def normal(*shape: int, dtype: Any = jnp.float32, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), dtype)


def three_vectors(rows: int, dtype: Any = jnp.float32) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns a query, a key and a value of each row."""
    query, key, value = (normal(rows, WIDTH, dtype=dtype, seed=seed) for seed in (3, 4, 5))
    return query, key, value


def cached(layout: RowsFirst, rows: int, positions: int, dtype: Any = jnp.float32) -> KeysValues:
    keys, values = (normal(rows, positions, WIDTH, dtype=dtype, seed=seed) for seed in (1, 2))
    return keep(layout, keys, values)


@pytest.mark.parametrize(
    ("slots", "sharers", "length", "positions", "int8"),
    [
        # One slot, and a length of one block that no tile divides.
        (1, 1, 7, (6,), False),
        (1, 2, 37, (0,), True),
        # Several blocks: the first and the last position of each, and more slots than tiles on their way.
        (5, 2, 384, (0, 127, 128, 300, 383), False),
        (5, 2, 384, (0, 127, 128, 300, 383), True),
    ],
)
def test_self_attention_is_that_of_xla(
    slots: int, sharers: int, length: int, positions: tuple[int, ...], int8: bool
) -> None:
    layout, rows, position = RowsFirst(HEADS, int8=int8), slots * sharers, jnp.array(positions)
    past = cached(layout, rows, length)
    vectors = three_vectors(rows)
    expected, (placed,) = layout.extend(*vectors, (past,), position)
    attended, extended = extend(*vectors, past, position, heads=HEADS, interpret=TPU)
    np.testing.assert_allclose(attended, expected.T, rtol=2e-5, atol=2e-6)
    for mine, other in zip(jax.tree.leaves(extended), jax.tree.leaves(placed), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_self_attention_in_bfloat16_differs_by_rounding() -> None:
    layout, position = RowsFirst(HEADS), jnp.array([200, 255])
    past = cached(layout, 4, 256, jnp.bfloat16)
    vectors = three_vectors(4, jnp.bfloat16)
    expected, _ = layout.extend(*vectors, (past,), position)
    attended, _ = extend(*vectors, past, position, heads=HEADS, interpret=TPU)
    np.testing.assert_allclose(attended, expected.T.astype(jnp.float32), atol=4e-3)


def test_positions_that_are_not_drawn_are_not_read() -> None:
    layout, position = RowsFirst(HEADS), jnp.array([3, 130, 255])
    past = cached(layout, 6, 384)
    vectors = three_vectors(6)
    expected, _ = layout.extend(*vectors, (past,), position)
    # Blocks of 128 positions; what is past each slot's block would make every sum NaN.
    unread = jnp.arange(384) >= jnp.repeat(position // 128 * 128 + 128, 2)[:, None]
    past = jax.tree.map(lambda each: jnp.where(unread[..., None], jnp.nan, each), past)
    attended, extended = extend(*vectors, past, position, heads=HEADS, interpret=TPU)
    np.testing.assert_allclose(attended, expected.T, rtol=2e-5, atol=2e-6)
    assert bool(jnp.isnan(extended.keys).any(-1)[unread].all()), "and not written"


@pytest.mark.parametrize(("slots", "length", "empty", "int8"), [(1, 13, 1, False), (6, 64, 2, True)])
def test_cross_attention_is_that_of_xla(slots: int, length: int, empty: int, int8: bool) -> None:
    layout = RowsFirst(HEADS, int8=int8)
    prompts, shared = cached(layout, slots, length), cached(layout, 1, empty)
    # Texts of several lengths, and one with a gap.
    mask = (jnp.arange(length) <= jnp.arange(slots)[:, None] * 2).at[-1, 1].set(False)
    queries, whole = normal(2 * slots, WIDTH), jnp.ones((1, empty), bool)
    expected = layout.attend_to_prompts(queries, prompts, mask, shared, whole)
    attended = attend_to_prompts(queries, prompts, mask, shared, whole, heads=HEADS, interpret=TPU)
    np.testing.assert_allclose(attended, expected.T, rtol=2e-5, atol=2e-6)


def test_a_slot_does_not_depend_on_the_others() -> None:
    layout, position = RowsFirst(HEADS), jnp.array([3, 130, 255])
    past = cached(layout, 6, 256)
    vectors = three_vectors(6)
    together, _ = extend(*vectors, past, position, heads=HEADS, interpret=True)
    moved, _ = extend(*vectors, past, position.at[jnp.array([0, 2])].set(77), heads=HEADS, interpret=True)
    np.testing.assert_array_equal(together[2:4], moved[2:4])


@pytest.mark.parametrize(
    ("rows", "length", "width", "dtype", "block", "fits"),
    [
        (32, 256, 1024, jnp.bfloat16, 64, True),
        (32, 256, 2048, jnp.bfloat16, 64, True),
        # A part of a layer: as many bytes at once as of a whole one.
        (32, 256, 512, jnp.bfloat16, 128, True),
        # Scales have positions in their lanes.
        (32, 256, 2048, jnp.int8, 128, True),
        # The shipped model: narrower than the lanes of a TPU.
        (32, 64, 192, jnp.bfloat16, 64, False),
        # No divisor: all positions at once, which would be too much.
        (32, 1021, 2048, jnp.bfloat16, 1021, False),
    ],
)
def test_blocks_fit_into_the_chip(
    rows: int, length: int, width: int, dtype: Any, block: int, fits: bool
) -> None:
    plan = Plan.of((rows, length, width), dtype, rows // 2, 16, jnp.bfloat16)
    assert (plan.block, plan.fits()) == (block, fits)
