"""The step: equal results with any blocks and groups, and the types that it computes in."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from smalti.engines.encoding import Encoding
from smalti.engines.generator.attention import HeadsFirst, KeysValues, put_into_blocks
from smalti.engines.generator.batch import DecodeBatch, default_groups
from smalti.engines.generator.partition import Partition
from smalti.engines.generator.programs import step
from smalti.engines.generator.requests import Candidate
from smalti.engines.generator.state import block_length
from smalti.models import bart
from smalti.models.bart import DalleBart
from smalti.models.layers import compute_dtype
from smalti.parameters import SamplingParameters
from smalti.testing.model import random_parameters, tiny_bart_config

# Wide enough for XLA to compute the products as for a large model.
CONFIG = tiny_bart_config(
    300, d_model=128, decoder_ffn_dim=320, image_length=64, image_vocab_size=512, decoder_start_token_id=512
)
LAYOUT = HeadsFirst(heads=4)
SLOTS = 5
VARIED = SamplingParameters(temperature=0.9, guidance_scale=3, top_k=30, top_p=0.95)


def make(slots: int = SLOTS, **options: Any) -> DecodeBatch:
    model = DalleBart(CONFIG, random_parameters(bart.parameter_shapes(CONFIG), 0))
    return DecodeBatch(model, encoding(2), slots=slots, **{"skip_blocks": True, **options})


def encoding(length: int) -> Encoding:
    numbers = np.random.default_rng(length)
    states = numbers.normal(size=(CONFIG.max_text_length, CONFIG.d_model)).astype(np.float32)
    return Encoding(states, (np.arange(CONFIG.max_text_length) < length).astype(np.int32))


def begin(batch: DecodeBatch, slots: range = range(SLOTS)) -> None:
    candidates = [Candidate(7, slot, VARIED) for slot in slots]
    batch.insert(batch.prefill(encoding(9)), slots, candidates)


def blocks(rows: int, lengths: list[int], dtype: Any = jnp.float32) -> list[KeysValues]:
    numbers = np.random.default_rng(0)
    shapes = [(rows, 4, length, 16) for length in lengths]
    return [
        KeysValues(*(jnp.asarray(numbers.normal(size=shape), dtype) for _ in range(2))) for shape in shapes
    ]


def test_attention_to_all_blocks_equals_plain_attention() -> None:
    queries = jnp.asarray(np.random.default_rng(1).normal(size=(6, 4, 16)), jnp.float32)
    parts = blocks(6, [8, 8, 5])
    position = jnp.array([0, 7, 8, 12, 16, 20])
    whole = KeysValues(
        *(jnp.concatenate([getattr(part, name) for part in parts], axis=2) for name in ("keys", "values"))
    )
    expected = LAYOUT.attend(queries, whole, jnp.arange(21) <= position[:, None])
    np.testing.assert_allclose(
        LAYOUT.attend_to_blocks(queries, parts, position), expected, rtol=2e-5, atol=2e-6
    )


def test_position_is_written_to_its_block_only() -> None:
    parts = blocks(3, [4, 4, 4])
    new = jnp.full((3, 4, 16), 9.0)
    placed = put_into_blocks(LAYOUT, parts[:2], new, -new, jnp.array([0, 6, 11]))
    changed = [
        [
            tuple(int(index) for index in indices)
            for indices in np.argwhere(np.asarray(after.keys == 9)[:, 0, :, 0])
        ]
        for after in placed
    ]
    assert changed == [[(0, 0)], [(1, 2)]]  # The position of the last row is in the block that was left out.
    for before, after in zip(parts, placed, strict=False):
        untouched = np.asarray(after.keys != 9)
        np.testing.assert_array_equal(np.asarray(after.keys)[untouched], np.asarray(before.keys)[untouched])
        np.testing.assert_array_equal(np.asarray(after.values == -9), ~untouched)


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_more_blocks_do_not_change_a_bit(dtype: Any) -> None:
    """A step attends to more blocks if another slot is further along."""
    states = {}
    for count in (1, 2, 4):
        batch = make(dtype=dtype)
        begin(batch)
        for _ in range(2):  # Up to the end of the first block.
            batch._step(count)
        states[count] = [np.asarray(leaf) for leaf in jax.tree.leaves(batch._state)]
    assert block_length(CONFIG, 4) == 16
    for count in (2, 4):
        for one, other in zip(states[1], states[count], strict=True):
            assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("skip", [True, False])
def test_step_attends_to_the_blocks_in_use(monkeypatch: pytest.MonkeyPatch, skip: bool) -> None:
    batch = make(steps_per_dispatch=8, skip_blocks=skip)
    attended: list[int] = []
    original = DecodeBatch._step

    def note(self: DecodeBatch, count: int) -> Any:
        attended.append(count)
        return original(self, count)

    monkeypatch.setattr(DecodeBatch, "_step", note)
    begin(batch, range(2))
    for dispatch in range(8):
        if dispatch == 5:
            begin(batch, range(2, 3))  # A slot that begins later does not reduce the number of blocks.
        batch.step()
    for _ in range(2):  # Now it is the only one that runs.
        batch.step()
    assert attended == ([1, 1, 2, 2, 3, 3, 4, 4, 2, 3] if skip else [4] * 10)


@pytest.mark.parametrize("count", [1, 3, pytest.param(8, marks=pytest.mark.slow)])
def test_tokens_are_the_same_with_any_number_of_blocks(count: int) -> None:
    drawn = []
    for each in (4, count):
        batch = make(blocks=each)
        begin(batch)
        drawn.append(np.concatenate([batch.step() for _ in range(8)], axis=1))
    np.testing.assert_array_equal(drawn[1], drawn[0])


@pytest.mark.parametrize("furthest", [0, 7, 8, 15, 16, 20])
def test_blocks_after_the_furthest_position_are_not_read(furthest: int) -> None:
    queries = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 16)), jnp.float32)
    parts = blocks(2, [8, 8, 5])
    position = jnp.array([furthest // 2, furthest])
    needed = furthest // 8 + 1
    for part in range(needed, 3):  # NaN would spread whatever its weight.
        parts[part] = KeysValues(*(jnp.full((2, 4, (8, 8, 5)[part], 16), jnp.nan) for _ in range(2)))
    drawn = jax.jit(LAYOUT.attend_to_blocks)(queries, parts, position, jnp.int32(furthest))
    np.testing.assert_array_equal(drawn, jax.jit(LAYOUT.attend_to_blocks)(queries, parts[:needed], position))


@pytest.mark.parametrize("groups", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_tokens_are_the_same_with_any_number_of_groups(groups: int) -> None:
    """The slots are at different positions, some after given tokens."""
    drawn = []
    for options in ({"groups": 1}, {"groups": groups}, {"skip_blocks": False}):
        batch = make(slots=8, **options)
        begin(batch, range(3))
        rows = [batch.step()]
        given = tuple(range(20))
        candidates = [Candidate(8, 0, VARIED, given=given), Candidate(8, 1, VARIED, given=given)]
        batch.insert(batch.prefill(encoding(5)), (3, 6), candidates)
        rows += [batch.step() for _ in range(3)]
        batch.release((1,))
        begin(batch, range(7, 8))
        rows += [batch.step() for _ in range(8)]
        drawn.append(np.concatenate(rows, axis=1)[[0, 2, 3, 6, 7]])
    np.testing.assert_array_equal(drawn[1], drawn[0])
    np.testing.assert_array_equal(drawn[2], drawn[0])


@pytest.mark.parametrize(("slots", "groups"), [(1, 1), (4, 1), (8, 2), (12, 1), (16, 4), (18, 1), (64, 4)])
def test_slots_are_grouped_on_a_single_cpu(slots: int, groups: int) -> None:
    assert jax.default_backend() == "cpu"
    assert default_groups(slots, Partition.over()) == groups


def test_compute_type_depends_on_the_backend() -> None:
    expected = {"cpu": jnp.float32, "gpu": jnp.bfloat16, "tpu": jnp.bfloat16}[jax.default_backend()]
    assert compute_dtype() == expected
    batch = make()
    held = {leaf.dtype for leaf in jax.tree.leaves((batch._weights, batch._state.self_attention))}
    assert held == {jnp.dtype(expected)}


def test_with_bfloat16_softmax_and_logits_are_float32() -> None:
    batch = make(dtype=jnp.bfloat16)
    held = jax.tree.leaves((batch._weights, batch._state.self_attention, batch._state.cross_attention))
    # Norms compute in float32, and their parameters are not converted at every step.
    assert {leaf.dtype for leaf in held if leaf.ndim > 1} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in held if leaf.ndim == 1} == {jnp.dtype(jnp.float32)}
    arguments = (batch._partition, CONFIG, batch._weights, batch._unconditional, batch._state, 8, 4)
    program = jax.make_jaxpr(step, static_argnums=(0, 1, 5, 6))(*arguments)
    kinds = {
        (equation.primitive.name, *(variable.aval.dtype.name for variable in equation.invars[:1]))
        for equation in every_equation(program.jaxpr)
    }
    # Softmax and sampling use exp; greedy sampling uses argmax.
    assert [kind for kind in kinds if kind[0] == "exp"] == [("exp", "float32")]
    assert ("argmax", "float32") in kinds
    assert ("argmax", "bfloat16") not in kinds
    assert ("dot_general", "bfloat16") in kinds
    assert ("dot_general", "float32") not in kinds


def every_equation(program: Any) -> list[Any]:
    """Returns the equations of a program and of its inner programs."""
    found = []
    for equation in program.eqns:
        found.append(equation)
        for inner in jaxprs_in_params(equation.params):
            found += every_equation(inner)
    return found


def test_bfloat16_keys_are_close_to_float32() -> None:
    drawn = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        batch = make(dtype=dtype)
        begin(batch)
        batch.step()
        drawn[dtype] = batch._state.self_attention[-1][0][0].keys[:, :, 0]
    exact, rounded = (np.asarray(drawn[dtype], np.float32) for dtype in (jnp.float32, jnp.bfloat16))
    # The keys of the last layer depend on the whole first layer; bfloat16 has 8 bits.
    assert np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()
    assert (exact != rounded).any()
