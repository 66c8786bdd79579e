"""The layouts of keys and values, and the kernels: all give the same attention, logits and tokens."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smalti.engines.generator.attention import HeadsFirst, KeysValues, RowsFirst, keep, put_into_blocks
from smalti.engines.generator.batch import DecodeBatch
from smalti.engines.generator.partition import HEADS_FIRST, KERNEL, ROWS_FIRST, Partition
from smalti.engines.generator.requests import Candidate
from smalti.engines.generator.state import abstract_state, empty_state
from smalti.engines.generator.weights import Quantized, abstract_weights, decoder_weights
from smalti.errors import InvalidInputError
from smalti.models import bart
from smalti.models.bart import DalleBart
from smalti.parameters import FREE
from smalti.testing.model import random_parameters
from tests.engines.test_programs import CONFIG, VARIED, encoding

HEADS, D_MODEL = 4, 64
# Its feed-forward width, 320, is padded to 384 with rows first.
MODEL = DalleBart(CONFIG, random_parameters(bart.parameter_shapes(CONFIG), 0))


def arrays(rows: int, positions: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns queries `[d_model, rows]`, and keys and values `[rows, d_model, positions]`."""
    numbers = np.random.default_rng(rows * positions)
    shapes = ((D_MODEL, rows), (rows, D_MODEL, positions), (rows, D_MODEL, positions))
    queries, keys, values = (jnp.asarray(numbers.normal(size=shape), jnp.float32) for shape in shapes)
    return queries, keys, values


def cached(layout: Any, keys: jax.Array, values: jax.Array) -> KeysValues:
    return keep(
        layout, *(jnp.concatenate([layout.by_position(row) for row in each]) for each in (keys, values))
    )


@pytest.mark.parametrize("sharers", [1, 2])
@pytest.mark.parametrize(("rows", "shared", "positions"), [(1, False, 1), (3, False, 13), (5, True, 64)])
def test_attention_is_the_same_in_both_layouts(rows: int, shared: bool, positions: int, sharers: int) -> None:
    queries, keys, values = arrays(rows, positions)
    keys, values = (each[:1] if shared else each for each in (keys, values))
    mask = jnp.arange(positions) <= jnp.arange(rows)[:, None] * 3
    first, second = (
        layout.attend(layout.by_row(queries), cached(layout, keys, values), mask)
        for layout in (HeadsFirst(HEADS), RowsFirst(HEADS, sharers))
    )
    np.testing.assert_allclose(second, first, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("rows", "shared", "positions"), [(1, False, 1), (5, True, 64), (6, False, 13)])
def test_int8_changes_attention_little(rows: int, shared: bool, positions: int) -> None:
    queries, keys, values = arrays(rows, positions)
    # Heads of different sizes, as real ones are: one scale for all would lose the small ones.
    sizes = jnp.repeat(jnp.array([1.0, 0.01, 3.0, 0.2]), D_MODEL // HEADS)[:, None]
    keys, values = (each[:1] * sizes if shared else each * sizes for each in (keys, values))
    mask = jnp.arange(positions) <= jnp.arange(rows)[:, None] * 3
    plain, *short = (
        layout.attend(layout.by_row(queries), cached(layout, keys, values), mask)
        for layout in (HeadsFirst(HEADS), HeadsFirst(HEADS, True), RowsFirst(HEADS, 2, True))
    )
    np.testing.assert_allclose(short[1], short[0], rtol=2e-5, atol=2e-6)
    error = jnp.abs(short[0] - plain).reshape(HEADS, -1).max(1) / jnp.abs(plain).reshape(HEADS, -1).max(1)
    assert 0 < error.max() < 0.03


@pytest.mark.parametrize("int8", [False, True])
def test_a_step_writes_and_reads_the_same_in_both_layouts(int8: bool) -> None:
    queries, keys, values = arrays(4, 21)
    position = jnp.array([0, 5, 12, 20])
    results = []
    for layout in (HeadsFirst(HEADS, int8), RowsFirst(HEADS, int8=int8)):
        past = (cached(layout, keys, values),)
        new = layout.by_row(queries)
        placed = put_into_blocks(layout, past, new, -new, position)
        results.append(layout.attend_to_blocks(new, placed, position))
        for before, after in zip(jax.tree.leaves(past), jax.tree.leaves(placed), strict=True):
            # Nothing else was written: a vector of each row, or the scales of its heads.
            changed = int((before != after).sum())
            assert (
                changed == len(position) * HEADS
                if after.dtype != past[0].keys.dtype
                else changed <= queries.size
            )
    np.testing.assert_allclose(results[1], results[0], rtol=2e-5, atol=2e-6)


def draw(cache_layout: str, *, int8: bool = False) -> tuple[np.ndarray, DecodeBatch]:
    """Draws candidates of two prompts, some after given tokens or around them, at different positions."""
    partition = dataclasses.replace(
        Partition.over(cache_layout=cache_layout), int8_cache=int8, int8_weights=int8
    )
    batch = DecodeBatch(MODEL, encoding(2), slots=5, partition=partition, dtype=jnp.float32)
    batch.insert(batch.prefill(encoding(9)), (0, 2), [Candidate(7, each, VARIED) for each in range(2)])
    rows = [batch.step()]
    given = (tuple(range(20)), (FREE, 3, 4, FREE, 5))
    batch.insert(
        batch.prefill(encoding(5)), (4, 1), [Candidate(8, 0, VARIED, given=tokens) for tokens in given]
    )
    rows.append(batch.step())
    batch.release((2,))
    batch.insert(batch.prefill(encoding(1)), (2,), [Candidate(9, 3, VARIED)])
    rows += [batch.step() for _ in range(8)]
    return np.concatenate(rows, axis=1), batch


def test_tokens_are_the_same_in_both_layouts_and_with_the_kernels() -> None:
    (plain, _), (drawn, batch) = draw(HEADS_FIRST), draw(ROWS_FIRST)
    np.testing.assert_array_equal(drawn, plain)
    np.testing.assert_array_equal(draw(KERNEL)[0], plain)
    state = batch._state
    assert state.self_attention[0][0][0].keys.shape == (10, CONFIG.image_length, CONFIG.d_model)
    kernel: Any = batch._weights.layers[0].glu_out
    assert kernel.shape == (CONFIG.d_model, 384)


def test_int8_halves_the_state_and_gives_almost_the_same_logits() -> None:
    (plain, exact), (drawn, batch) = draw(ROWS_FIRST), draw(ROWS_FIRST, int8=True)
    np.testing.assert_array_equal(drawn, draw(HEADS_FIRST, int8=True)[0])
    np.testing.assert_array_equal(drawn, draw(KERNEL, int8=True)[0])
    assert (drawn == plain).mean() > 0.02, "as for unrelated tokens"
    layer, kernel = batch._state.self_attention[0][0][0], batch._weights.layers[0].self_qkv
    assert isinstance(kernel, Quantized)
    assert {each.dtype for each in (layer.keys, layer.values, kernel.kernel)} == {jnp.dtype(jnp.int8)}
    assert layer.keys.nbytes == exact._state.self_attention[0][0][0].keys.nbytes / 4


def test_int8_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_GENERATOR_INT8", "cache, weights")
    partition = Partition.of_settings()
    assert (partition.int8_cache, partition.int8_weights) == (True, True)
    monkeypatch.setenv("SMALTI_GENERATOR_INT8", "all")
    with pytest.raises(InvalidInputError, match=r"^SMALTI_GENERATOR_INT8: 'all' must be cache, weights, or"):
        Partition.of_settings()


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("cache_layout", [HEADS_FIRST, ROWS_FIRST])
def test_what_stands_for_weights_and_state_has_their_shapes(cache_layout: str, int8: bool) -> None:
    partition = dataclasses.replace(
        Partition.over(cache_layout=cache_layout), int8_cache=int8, int8_weights=int8
    )
    config = dataclasses.replace(CONFIG, decoder_layers=2)
    model = DalleBart(config, random_parameters(bart.parameter_shapes(config), 0))
    blocks = 4 if cache_layout == HEADS_FIRST else 1
    sizes = (4, jnp.dtype(jnp.bfloat16), blocks, 1)
    for abstract, real in (
        (
            abstract_weights(config, jnp.bfloat16, partition),
            decoder_weights(config, model.params, jnp.bfloat16, partition),
        ),
        (abstract_state(partition, config, *sizes), empty_state(partition, config, *sizes)),
    ):
        for stand_in, leaf in zip(jax.tree.leaves(abstract), jax.tree.leaves(real), strict=True):
            assert (stand_in.shape, stand_in.dtype) == (leaf.shape, leaf.dtype)
            assert stand_in.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
