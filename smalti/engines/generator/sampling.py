"""Sampling a token from logits: guidance, temperature, top-k and top-p, with separate values for every row.

Nothing is sorted. The k-th largest weight, and the smallest weight that top-p keeps, are found by bisection over the
ordered bit patterns of float32: 30 counts (or sums) over the row, exact for every k and p. Sorting 16,384 logits per
token costs several times more.

The random number of a token depends only on (seed, candidate, position), and one number samples one token (by inversion
of the cumulative distribution), so a token does not depend on the slot, the batch or the steps per dispatch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

# The values for "no limit".
NO_TOP_K = 0
NO_TOP_P = 1.0


def seed_words(seed: int) -> UInt32[np.ndarray, "2"]:
    """Returns the high and the low word of a seed in [0, 2^63), as `Sampling.seed` holds it."""
    return np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)


def uniforms(
    seeds: UInt32[Array, "rows 2"], candidates: Int[Array, " rows"], positions: Int[Array, " rows"]
) -> Float[Array, " rows"]:
    """Returns one random number in [0, 1) for each (seed, candidate, position), by Threefry."""

    def one(
        seed: UInt32[Array, "2"], candidate: Int[Array, ""], position: Int[Array, ""]
    ) -> Float[Array, ""]:
        key = jax.random.wrap_key_data(seed, impl="threefry2x32")
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, candidate), position))

    return jax.vmap(one)(seeds, candidates, positions)


def guide(
    conditional: Float[Array, "rows vocab"],
    unconditional: Float[Array, "rows vocab"],
    guidance_scale: Float[Array, " rows"],
) -> Float[Array, "rows vocab"]:
    """Returns `uncond + scale * (cond - uncond)` (super conditioning); scale 1 means no guidance."""
    return unconditional + guidance_scale[:, None] * (conditional - unconditional)


def sample(
    logits: Float[Array, "rows vocab"],
    uniform: Float[Array, " rows"],
    temperature: Float[Array, " rows"],
    top_k: Int[Array, " rows"],
    top_p: Float[Array, " rows"],
) -> Int[Array, " rows"]:
    """Samples one token per row.

    Args:
        logits: logits after guidance.
        uniform: random numbers in [0, 1).
        temperature: divides the logits; 0 takes the largest logit (greedy).
        top_k: keeps this many largest logits, and any that equal the last of them; 0 keeps all.
        top_p: of those, keeps the most probable tokens that together reach this probability (Holtzman et al. 2020,
            https://arxiv.org/abs/1904.09751); 1 keeps all.
    """
    greedy = temperature == 0
    scaled = logits / jnp.where(greedy, 1.0, temperature)[:, None]
    weights = jnp.exp(scaled - scaled.max(axis=-1, keepdims=True))
    order = ordered_bits(weights)
    kept = order >= _kth_largest(order, top_k)[:, None]
    weights = jnp.where(kept, weights, 0.0)
    kept = order >= _nucleus_floor(order, weights, top_p)[:, None]
    weights = jnp.where(kept, weights, 0.0)
    sampled = _invert(weights, uniform)
    return jnp.where(greedy, jnp.argmax(logits, axis=-1), sampled).astype(jnp.int32)


def ordered_bits(values: Float[Array, "rows vocab"]) -> UInt32[Array, "rows vocab"]:
    """Returns the bits of non-negative float32 as integers, which are in the same order as the numbers."""
    return jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)


def _bisect(largest: int, rows: int, is_too_high: Callable[[Array], Array]) -> UInt32[Array, " rows"]:
    """Returns, per row, the largest number up to `largest` that is not too high; 0 always qualifies."""

    def narrow(bit: Int[Array, ""], found: UInt32[Array, "rows"]) -> UInt32[Array, "rows"]:
        trial = found | (jnp.uint32(1) << (jnp.uint32(largest.bit_length() - 1) - bit.astype(jnp.uint32)))
        return jnp.where(is_too_high(trial), found, trial)

    return jax.lax.fori_loop(0, largest.bit_length(), narrow, jnp.zeros(rows, jnp.uint32))


# Weights are exp(x - max), in [0, 1], so no bit pattern exceeds that of 1.0.
_MAX_WEIGHT = int(np.float32(1.0).view(np.uint32))


def _kth_largest(order: UInt32[Array, "rows vocab"], top_k: Int[Array, " rows"]) -> UInt32[Array, " rows"]:
    """Returns, per row, the largest threshold that at least k numbers reach; 0 without a limit."""
    wanted = jnp.minimum(top_k, order.shape[1])
    return _limits(
        top_k != NO_TOP_K, lambda trial: (order >= trial[:, None]).sum(-1, dtype=jnp.int32) < wanted
    )


def _nucleus_floor(
    order: UInt32[Array, "rows vocab"], weights: Float[Array, "rows vocab"], top_p: Float[Array, " rows"]
) -> UInt32[Array, " rows"]:
    """Returns, per row, the largest threshold whose tokens together reach probability p; 0 without a limit."""
    wanted = top_p * weights.sum(-1)

    def is_too_high(trial: UInt32[Array, " rows"]) -> Array:
        return jnp.where(order >= trial[:, None], weights, 0.0).sum(-1) < wanted

    return _limits(top_p < NO_TOP_P, is_too_high)


def _limits(limited: Bool[Array, " rows"], is_too_high: Callable[[Array], Array]) -> UInt32[Array, " rows"]:
    """Returns the threshold of each row by bisection, and 0 for one without a limit; at once if no row has a limit."""
    rows = limited.shape[0]
    none = jnp.zeros(rows, jnp.uint32)
    return jax.lax.cond(
        limited.any(),
        lambda: jnp.where(limited, _bisect(_MAX_WEIGHT, rows, is_too_high), none),
        lambda: none,
    )


def _invert(weights: Float[Array, "rows vocab"], uniform: Float[Array, " rows"]) -> Int[Array, " rows"]:
    """Returns, per row, the first token at which the cumulative weight exceeds `uniform` times the total.

    The cumulative sum has two levels, blocks and then the tokens of one block: over a whole row it would be slow on a
    CPU and accumulate more rounding error.
    """
    rows, vocab = weights.shape
    block = 128
    padded = jnp.pad(weights, ((0, 0), (0, -vocab % block))).reshape(rows, -1, block)
    ends = jnp.cumsum(padded.sum(-1), axis=-1)
    target = uniform * ends[:, -1]
    # Rounding may put the target at the very end; then the last block with any weight is the right one.
    chosen = jnp.minimum((ends <= target[:, None]).sum(-1), _last_positive(padded.sum(-1)))
    start = jnp.where(
        chosen > 0, jnp.take_along_axis(ends, jnp.maximum(chosen - 1, 0)[:, None], axis=1)[:, 0], 0.0
    )
    inside = jnp.take_along_axis(padded, chosen[:, None, None], axis=1)[:, 0]
    index = (jnp.cumsum(inside, axis=-1) <= (target - start)[:, None]).sum(-1)
    return chosen * block + jnp.minimum(index, _last_positive(inside))


def _last_positive(values: Float[Array, "rows columns"]) -> Int[Array, " rows"]:
    """Returns the index of the last positive value in each row."""
    return values.shape[1] - 1 - jnp.argmax(values[:, ::-1] > 0, axis=-1)
