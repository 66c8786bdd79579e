"""The compiled programs of the generator: prefill, prime, insert, step.

They compute what `smalti.models.bart.logits` does, one token at a time: self-attention keys and values are kept, those
of cross-attention are computed once per prompt. `tests/test_generator.py` holds one against the other.

Hidden states are `[d_model, rows]`: see `decode_weights` for why the kernel stands on the left.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smalti.engines.decode_state import DecodeState, KeysValues, Prefix, Sampling
from smalti.engines.decode_weights import DecoderWeights, LayerWeights, Norm
from smalti.engines.sampling import draw, guide, uniforms
from smalti.models.bart import LAYER_NORM_EPSILON, DalleBartConfig
from smalti.models.layers import precision

Attention = Callable[[Float[Array, "d_model rows"], LayerWeights], Float[Array, "d_model rows"]]


def project(
    kernel: Float[Array, "*fused outputs inputs"], x: Float[Array, "inputs rows"]
) -> Float[Array, "*fused outputs rows"]:
    """Returns `kernel @ x`."""
    return jnp.tensordot(kernel, x, 1, precision=precision(kernel.dtype))


def normalize(x: Float[Array, "features rows"], norm: Norm) -> Float[Array, "features rows"]:
    """Layer norm of every column, its statistics in float32."""
    wide = x.astype(jnp.float32)
    mean = wide.mean(0)
    variance = jnp.maximum(jnp.square(wide).mean(0) - jnp.square(mean), 0)
    scaled = (wide - mean) * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)
    if norm.scale is not None:
        scaled = scaled * norm.scale[:, None]
    return (scaled + norm.bias[:, None]).astype(x.dtype)


def run_layer(
    x: Float[Array, "d_model rows"], layer: LayerWeights, attend_self: Attention, attend_cross: Attention
) -> Float[Array, "d_model rows"]:
    """One decoder layer; how its two attentions see their places is the caller's business."""
    attended = project(layer.self_out, attend_self(normalize(x, layer.self_norm), layer))
    x = x + normalize(attended, layer.self_out_norm)
    attended = project(layer.cross_out, attend_cross(normalize(x, layer.cross_norm), layer))
    x = x + normalize(attended, layer.cross_out_norm)
    activated, linear = project(layer.glu_in, normalize(x, layer.glu_norm))
    h = normalize(jax.nn.gelu(activated, approximate=False) * linear, layer.glu_inner_norm)
    return x + project(layer.glu_out, h)


def embed(
    weights: DecoderWeights, tokens: Int[Array, "rows"], positions: Int[Array, "rows"]
) -> Float[Array, "d_model rows"]:
    """Returns the hidden states before the first layer."""
    return normalize(
        (weights.embed_tokens[tokens] + weights.embed_positions[positions]).T, weights.embed_norm
    )


def split_heads(x: Float[Array, "features rows"], heads: int) -> Float[Array, "rows heads head_size"]:
    """Gives each head its part of the features."""
    return x.reshape(heads, -1, x.shape[1]).transpose(2, 0, 1)


def attend(
    queries: Float[Array, "rows heads head_size"],
    past: KeysValues,
    mask: Bool[Array, "#rows places"],
) -> Float[Array, "d_model rows"]:
    """Attends from one query a row over that row's places; softmax in float32.

    Keys and values with a single row are shared by all rows.
    """
    rows, _, head_size = queries.shape
    shared = past.keys.shape[0] == 1
    keys, values = (past.keys[0], past.values[0]) if shared else (past.keys, past.values)
    places = "hld" if shared else "rhld"
    exact = precision(queries.dtype)
    scores = jnp.einsum(f"rhd,{places}->rhl", queries * head_size**-0.5, keys, precision=exact)
    scores = jnp.where(mask[:, None], scores.astype(jnp.float32), jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores).astype(queries.dtype)
    return jnp.einsum(f"rhl,{places}->rhd", weights, values, precision=exact).reshape(rows, -1).T


@partial(jax.jit, static_argnums=0)
def prefill(
    config: DalleBartConfig,
    weights: DecoderWeights,
    encoding: Float[Array, "places d_model"],
    attention_mask: Int[Array, "places"],
) -> Prefix:
    """Computes the cross-attention keys and values of one prompt, for all layers."""

    def keys_values(layer: LayerWeights) -> KeysValues:
        keys, values = project(layer.cross_kv, encoding.T.astype(layer.cross_kv.dtype))
        heads = config.decoder_attention_heads
        return KeysValues(_heads_first(keys, heads), _heads_first(values, heads))

    return Prefix(tuple(keys_values(layer) for layer in weights.layers), attention_mask[None].astype(bool))


@partial(jax.jit, static_argnums=0)
def prime(
    config: DalleBartConfig,
    weights: DecoderWeights,
    prefix: Prefix,
    unconditional: Prefix,
    tokens: Int[Array, "image_length"],
) -> tuple[KeysValues, ...]:
    """Computes the self-attention keys and values of tokens that are given, all places at once.

    Args:
        config: the model's sizes.
        weights: the decoder's weights.
        prefix: the prompt's.
        unconditional: the empty prompt's.
        tokens: the picture so far; what stands behind it does not matter, since a place sees only those before it.

    Returns:
        By layer, for the conditional and for the unconditional half.
    """
    positions = jnp.arange(config.image_length)
    previous = jnp.where(positions == 0, config.decoder_start_token_id, jnp.roll(tokens, 1))
    causal = positions <= positions[:, None]
    halves = [_run_places(config, weights, half, previous, causal) for half in (prefix, unconditional)]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *halves)


def _run_places(
    config: DalleBartConfig,
    weights: DecoderWeights,
    prefix: Prefix,
    previous: Int[Array, "image_length"],
    causal: Bool[Array, "image_length image_length"],
) -> tuple[KeysValues, ...]:
    """Runs the decoder over all places of one picture; here a row is a place."""
    heads = config.decoder_attention_heads
    x = embed(weights, previous, jnp.arange(config.image_length))
    kept: list[KeysValues] = []

    def attend_self(x: Array, layer: LayerWeights) -> Array:
        q, k, v = project(layer.self_qkv, x)
        kept.append(KeysValues(_heads_first(k, heads), _heads_first(v, heads)))
        return attend(split_heads(q, heads), kept[-1], causal)

    for layer, cross in zip(weights.layers, prefix.layers, strict=True):

        def attend_cross(x: Array, layer: LayerWeights, cross: KeysValues = cross) -> Array:
            return attend(split_heads(project(layer.cross_q, x), heads), cross, prefix.mask)

        x = run_layer(x, layer, attend_self, attend_cross)
    return tuple(kept)


def _heads_first(x: Float[Array, "features places"], heads: int) -> Float[Array, "1 heads places head_size"]:
    return split_heads(x, heads).transpose(1, 0, 2)[None]


@partial(jax.jit, donate_argnums=0)
def insert(state: DecodeState, prefix: Prefix, slots: Int[Array, "slots"], sampling: Sampling) -> DecodeState:
    """Puts one prompt into many slots, which start at the first tile.

    Args:
        state: is given up.
        prefix: what `prefill` made of the prompt.
        slots: the slots' indices; an index past the last slot stands for none.
        sampling: the i-th entries belong to the i-th of `slots`.
    """

    def put(all_slots: Array, new: Array) -> Array:
        return all_slots.at[slots].set(new, mode="drop")

    return replace(
        state,
        position=put(state.position, jnp.zeros_like(slots)),
        sampling=jax.tree.map(put, state.sampling, sampling),
        cross_attention=jax.tree.map(put, state.cross_attention, prefix.layers),
        cross_mask=put(state.cross_mask, prefix.mask),
    )


@partial(jax.jit, donate_argnums=0)
def insert_primed(
    state: DecodeState,
    primed: tuple[KeysValues, ...],
    tokens: Int[Array, "image_length"],
    length: Int[Array, ""],
    slots: Int[Array, "slots"],
) -> DecodeState:
    """Lets slots, into which their prompt was just inserted, start behind tokens that are given.

    Args:
        state: is given up.
        primed: what `prime` made of the tokens.
        tokens: the picture so far.
        length: how many of them are given.
        slots: the slots' indices; an index past the last slot stands for none.
    """
    free = state.position.shape[0]
    rows = jnp.concatenate([slots, jnp.where(slots < free, slots + free, 2 * free)])
    halves = jnp.repeat(jnp.arange(2), slots.shape[0])
    self_attention = jax.tree.map(
        lambda all_rows, new: all_rows.at[rows].set(new[halves], mode="drop"), state.self_attention, primed
    )
    return replace(
        state,
        tokens=state.tokens.at[slots].set(tokens, mode="drop"),
        position=state.position.at[slots].set(length, mode="drop"),
        self_attention=self_attention,
    )


@partial(jax.jit, donate_argnums=0)
def release(state: DecodeState, slots: Int[Array, "slots"]) -> DecodeState:
    """Frees slots before they are finished; an index past the last slot stands for none."""
    finished = state.tokens.shape[1]
    return replace(state, position=state.position.at[slots].set(finished, mode="drop"))


@partial(jax.jit, static_argnums=(0, 4), donate_argnums=3)
def step(
    config: DalleBartConfig, weights: DecoderWeights, unconditional: Prefix, state: DecodeState, quantum: int
) -> tuple[DecodeState, Int[Array, "slots quantum"]]:
    """Draws the next tokens of every slot that is not finished.

    Args:
        config: the model's sizes.
        weights: the decoder's weights.
        unconditional: the prefix of the empty prompt, shared by all slots.
        state: is given up.
        quantum: how many tokens.

    Returns:
        The state, and what was drawn: of each slot the tokens from where it stood, of a slot that has finished on the
        way only the first ones of them.
    """
    before = state.position
    state = jax.lax.fori_loop(
        0, quantum, lambda _, state: _draw_one(config, weights, unconditional, state), state
    )
    places = jnp.minimum(before[:, None] + jnp.arange(quantum), config.image_length - 1)
    return state, jnp.take_along_axis(state.tokens, places, axis=1)


def _draw_one(
    config: DalleBartConfig, weights: DecoderWeights, unconditional: Prefix, state: DecodeState
) -> DecodeState:
    """Draws one token for every slot that is not finished."""
    slots = jnp.arange(state.position.shape[0])
    active = state.position < config.image_length
    position = jnp.minimum(state.position, config.image_length - 1)
    previous = jnp.where(
        position == 0, config.decoder_start_token_id, state.tokens[slots, jnp.maximum(position - 1, 0)]
    )
    logits, self_attention = _decode(config, weights, unconditional, state, previous, position)
    sampling = state.sampling
    conditional, unconditional_logits = jnp.split(logits, 2)
    guided = guide(conditional, unconditional_logits, sampling.guidance_scale)
    uniform = uniforms(sampling.seed, sampling.candidate, position)
    drawn = draw(guided, uniform, sampling.temperature, sampling.top_k, sampling.top_p)
    drawn = jnp.where(active, drawn, state.tokens[slots, position])
    return replace(
        state,
        tokens=state.tokens.at[slots, position].set(drawn),
        position=state.position + active,
        self_attention=self_attention,
    )


def _decode(
    config: DalleBartConfig,
    weights: DecoderWeights,
    unconditional: Prefix,
    state: DecodeState,
    previous: Int[Array, "slots"],
    position: Int[Array, "slots"],
) -> tuple[Float[Array, "two_slots vocab"], tuple[KeysValues, ...]]:
    """Runs the decoder for one place of every slot; returns the logits and the keys and values with that place."""
    heads = config.decoder_attention_heads
    both = jnp.concatenate([position, position])  # the conditional halves, then the unconditional ones
    self_mask = jnp.arange(config.image_length) <= both[:, None]
    rows = jnp.arange(both.shape[0])
    x = embed(weights, previous, position)
    x = jnp.concatenate([x, x], axis=1)
    self_attention: list[KeysValues] = []
    for layer, past, cross, cross_unconditional in zip(
        weights.layers, state.self_attention, state.cross_attention, unconditional.layers, strict=True
    ):

        def attend_self(x: Array, layer: LayerWeights, past: KeysValues = past) -> Array:
            q, k, v = (split_heads(each, heads) for each in project(layer.self_qkv, x))
            past = KeysValues(past.keys.at[rows, :, both].set(k), past.values.at[rows, :, both].set(v))
            self_attention.append(past)
            return attend(q, past, self_mask)

        def attend_cross(
            x: Array, layer: LayerWeights, cross: KeysValues = cross, shared: KeysValues = cross_unconditional
        ) -> Array:
            conditional, unconditional_ = jnp.split(split_heads(project(layer.cross_q, x), heads), 2)
            attended = (
                attend(conditional, cross, state.cross_mask),
                attend(unconditional_, shared, unconditional.mask),
            )
            return jnp.concatenate(attended, axis=1)

        x = run_layer(x, layer, attend_self, attend_cross)
    logits = project(weights.head, normalize(x, weights.final_norm))
    return logits.T.astype(jnp.float32), tuple(self_attention)
