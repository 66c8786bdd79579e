"""The layouts of keys and values: both give the same attention, logits and tokens."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smalti.engines.generator.attention import HeadsFirst, KeysValues, RowsFirst, put_into_blocks
from smalti.engines.generator.batch import DecodeBatch
from smalti.engines.generator.partition import HEADS_FIRST, ROWS_FIRST, Partition
from smalti.engines.generator.requests import Candidate
from smalti.engines.generator.state import abstract_state, empty_state
from smalti.engines.generator.weights import abstract_weights, decoder_weights
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
    return KeysValues(
        *(jnp.concatenate([layout.by_position(row) for row in each]) for each in (keys, values))
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


def test_a_step_writes_and_reads_the_same_in_both_layouts() -> None:
    queries, keys, values = arrays(4, 21)
    position = jnp.array([0, 5, 12, 20])
    results = []
    for layout in (HeadsFirst(HEADS), RowsFirst(HEADS)):
        past = (cached(layout, keys, values),)
        new = layout.by_row(queries)
        placed = put_into_blocks(layout, past, new, -new, position)
        results.append(layout.attend_to_blocks(new, placed, position))
        for before, after in zip(jax.tree.leaves(past), jax.tree.leaves(placed), strict=True):
            assert (before != after).sum() == queries.size  # Nothing else was written.
    np.testing.assert_allclose(results[1], results[0], rtol=2e-5, atol=2e-6)


def draw(cache_layout: str) -> tuple[np.ndarray, DecodeBatch]:
    """Draws candidates of two prompts, some after given tokens or around them, at different positions."""
    partition = Partition.over(cache_layout=cache_layout)
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


def test_tokens_are_the_same_in_both_layouts() -> None:
    (plain, _), (drawn, batch) = draw(HEADS_FIRST), draw(ROWS_FIRST)
    np.testing.assert_array_equal(drawn, plain)
    state = batch._state
    assert state.self_attention[0][0][0].keys.shape == (10, CONFIG.image_length, CONFIG.d_model)
    assert batch._weights.layers[0].glu_out.shape == (CONFIG.d_model, 384)


@pytest.mark.parametrize("cache_layout", [HEADS_FIRST, ROWS_FIRST])
def test_what_stands_for_weights_and_state_has_their_shapes(cache_layout: str) -> None:
    partition = Partition.over(cache_layout=cache_layout)
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
