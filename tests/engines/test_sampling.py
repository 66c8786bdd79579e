"""Sampling, compared with a NumPy reference that sorts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from smalti.engines.generator import sampling
from smalti.engines.generator.sampling import guide, seed_words, uniforms

VOCAB = 300
draw = jax.jit(sampling.sample)


def reference_probabilities(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Applies temperature, top-k and top-p in this order, in float64, by sorting."""
    scaled = logits.astype(np.float64) / temperature
    order = np.argsort(-scaled, kind="stable")
    keep = np.ones(len(logits), bool)
    if top_k:
        keep &= scaled >= scaled[order[min(top_k, len(logits)) - 1]]
    weights = np.where(keep, np.exp(scaled - scaled.max()), 0)
    probabilities = weights / weights.sum()
    reached_before = np.cumsum(probabilities[order]) - probabilities[order]
    keep[order[reached_before >= top_p]] = False
    weights = np.where(keep, weights, 0)
    return weights / weights.sum()


def draws(logits: np.ndarray, count: int, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Returns tokens sampled with uniforms spread evenly over [0, 1), so that frequencies are nearly exact."""
    rows = jnp.broadcast_to(jnp.asarray(logits), (count, len(logits)))
    every = jnp.ones(count)
    uniform = (jnp.arange(count) + 0.5) / count
    return np.asarray(
        draw(rows, uniform, every * temperature, jnp.full(count, top_k, jnp.int32), every * top_p)
    )


@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
    temperature=st.sampled_from([0.2, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 2, 17, 299, 300, 5000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
)
@settings(max_examples=40, deadline=None)
def test_frequencies_equal_those_of_the_reference(
    seed: int, spread: float, temperature: float, top_k: int, top_p: float
) -> None:
    logits = np.random.default_rng(seed).normal(0, spread, VOCAB).astype(np.float32)
    count = 4096
    expected = reference_probabilities(logits, temperature, top_k, top_p)
    frequencies = np.bincount(draws(logits, count, temperature, top_k, top_p), minlength=VOCAB) / count
    # With evenly spread uniforms, a token's count is off by at most one at either end of its interval.
    np.testing.assert_allclose(frequencies, expected, atol=2.5 / count)


# Probability of a larger chi-square if the distribution is right; seeds are fixed.
IMPROBABLE = 1e-4


@pytest.mark.parametrize(
    ("guidance_scale", "temperature", "top_k", "top_p"),
    [(1.0, 1.0, 0, 1.0), (3.0, 1.0, 0, 1.0), (1.0, 0.5, 0, 1.0), (1.0, 1.0, 20, 1.0), (1.0, 1.0, 0, 0.8),
     (0.0, 2.0, 0, 1.0), (2.0, 0.8, 50, 0.9)],
)  # fmt: skip
def test_tokens_of_many_candidates_have_the_distribution_of_the_reference(
    guidance_scale: float, temperature: float, top_k: int, top_p: float
) -> None:
    """Covers everything from two rows of logits to a token, with the random numbers of candidates."""
    count = 20_000
    conditional, unconditional = np.random.default_rng(11).normal(0, 1.5, (2, VOCAB)).astype(np.float32)
    guided = unconditional.astype(np.float64) + guidance_scale * (
        conditional.astype(np.float64) - unconditional
    )
    expected = count * reference_probabilities(guided, temperature, top_k, top_p)

    every = jnp.ones(count)
    rows = [jnp.broadcast_to(jnp.asarray(logits), (count, VOCAB)) for logits in (conditional, unconditional)]
    seeds = jnp.broadcast_to(jnp.asarray(seed_words(2024)), (count, 2))
    uniform = uniforms(seeds, jnp.arange(count), jnp.full(count, 17))
    tokens = draw(
        guide(rows[0], rows[1], every * guidance_scale), uniform, every * temperature,
        jnp.full(count, top_k, jnp.int32), every * top_p,
    )  # fmt: skip
    observed = np.bincount(np.asarray(tokens), minlength=VOCAB)

    assert observed[expected == 0].sum() == 0
    # Rare tokens are counted together, since chi-square needs at least five of each kind.
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    kinds = expected > 0
    chi_square = ((observed - expected)[kinds] ** 2 / expected[kinds]).sum()
    assert scipy.stats.chi2.sf(chi_square, kinds.sum() - 1) > IMPROBABLE


def test_every_row_has_its_own_parameters() -> None:
    logits = np.random.default_rng(0).normal(0, 1, (4, VOCAB)).astype(np.float32)
    uniform = jnp.full(4, 0.999)
    best = logits.argmax(-1)
    drawn = draw(
        jnp.asarray(logits), uniform, jnp.array([1.0, 0.0, 1.0, 1.0]), jnp.array([1, 0, 0, 0], jnp.int32),
        jnp.array([1.0, 1.0, 1e-6, 1.0]),
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(drawn)[:3], best[:3])
    assert drawn[3] != best[3]


def test_equal_logits_are_all_kept_by_top_k() -> None:
    logits = np.zeros(VOCAB, np.float32)
    logits[[3, 30, 299]] = 2.0
    assert set(draws(logits, 512, 1.0, 2, 1.0)) == {3, 30, 299}


def test_largest_uniform_gives_the_last_token() -> None:
    logits = jnp.zeros((1, VOCAB))
    uniform = jnp.array([np.nextafter(np.float32(1), np.float32(0))])
    one = jnp.ones(1)
    assert draw(logits, uniform, one, jnp.zeros(1, jnp.int32), one)[0] == VOCAB - 1
    only_first = logits.at[0, 1:].set(-200.0)
    assert draw(only_first, uniform, one, jnp.zeros(1, jnp.int32), one)[0] == 0


def test_uniforms_depend_only_on_seed_candidate_and_position() -> None:
    seeds = jnp.asarray(np.stack([seed_words(seed) for seed in (5, 5, 5, 5, 6, 5 + 2**32)]))
    numbers = np.asarray(uniforms(seeds, jnp.array([0, 0, 1, 0, 0, 0]), jnp.array([0, 0, 0, 1, 0, 0])))
    assert numbers[0] == numbers[1]
    assert len(set(numbers.tolist())) == 5
    assert ((numbers >= 0) & (numbers < 1)).all()


def test_uniforms_are_uniform() -> None:
    seeds = jnp.broadcast_to(jnp.asarray(seed_words(123456789012345)), (64 * 64, 2))
    candidates, positions = (axis.reshape(-1) for axis in np.mgrid[:64, :64])
    numbers = np.asarray(uniforms(seeds, jnp.asarray(candidates), jnp.asarray(positions)))
    counts, _ = np.histogram(numbers, bins=16, range=(0, 1))
    # With 15 degrees of freedom, 37.7 is exceeded once in a thousand times; the numbers are always the same.
    assert ((counts - 256) ** 2 / 256).sum() < 37.7


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 1.0), (1.0, 3.0), (10.0, 21.0)])
def test_guidance_extrapolates_from_the_unconditional_logits(scale: float, expected: float) -> None:
    guided = guide(jnp.full((1, 2), 3.0), jnp.full((1, 2), 1.0), jnp.array([scale]))
    np.testing.assert_allclose(guided, expected)
