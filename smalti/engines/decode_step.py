"""The compiled programs of the generator: prefill, insert, step.

They compute what `smalti.models.bart.logits` does, one token at a time: self-attention keys and values are kept, those
of cross-attention are computed once per prompt. `tests/test_generator.py` holds one against the other.

Hidden states are `[d_model, rows]`: see `decode_weights` for why the kernel stands on the left.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smalti.engines.decode_state import DecodeState, KeysValues, Prefix, Sampling
from smalti.engines.decode_weights import DecoderWeights, LayerWeights, Norm
from smalti.engines.sampling import draw, guide, uniforms
from smalti.models.bart import LAYER_NORM_EPSILON, DalleBartConfig
from smalti.models.layers import precision


def project(
    kernel: Float[Array, "outputs inputs"], x: Float[Array, "inputs rows"]
) -> Float[Array, "outputs rows"]:
    """Returns `kernel @ x`."""
    return jnp.dot(kernel, x, precision=precision(kernel.dtype))


def normalize(x: Float[Array, "features rows"], norm: Norm) -> Float[Array, "features rows"]:
    """Layer norm of every column, its statistics in float32."""
    wide = x.astype(jnp.float32)
    mean = wide.mean(0)
    variance = jnp.maximum(jnp.square(wide).mean(0) - jnp.square(mean), 0)
    scaled = (wide - mean) * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)
    if norm.scale is not None:
        scaled = scaled * norm.scale[:, None]
    return (scaled + norm.bias[:, None]).astype(x.dtype)


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


def feed_forward(x: Float[Array, "d_model rows"], layer: LayerWeights) -> Float[Array, "d_model rows"]:
    """The GLU block, without the residual."""
    activated, linear = jnp.split(project(layer.glu_in, normalize(x, layer.glu_norm)), 2)
    h = normalize(jax.nn.gelu(activated, approximate=False) * linear, layer.glu_inner_norm)
    return project(layer.glu_out, h)


@partial(jax.jit, static_argnums=0)
def prefill(
    config: DalleBartConfig,
    weights: DecoderWeights,
    encoding: Float[Array, "1 places d_model"],
    attention_mask: Int[Array, "1 places"],
) -> Prefix:
    """Computes the cross-attention keys and values of one prompt, for all layers."""

    def keys_values(layer: LayerWeights) -> KeysValues:
        projected = project(layer.cross_kv, encoding[0].T.astype(layer.cross_kv.dtype))
        heads = split_heads(projected, 2 * config.decoder_attention_heads).transpose(1, 0, 2)[None]
        keys, values = jnp.split(heads, 2, axis=1)
        return KeysValues(keys, values)

    return Prefix(tuple(keys_values(layer) for layer in weights.layers), attention_mask.astype(bool))


@partial(jax.jit, donate_argnums=0)
def insert(
    state: DecodeState, prefix: Prefix, slots: Int[Array, "slots"], sampling: Sampling
) -> DecodeState:
    """Puts one prompt into many slots, which start at the first tile.

    Args:
        state: is given up.
        prefix: what `prefill` made of the prompt.
        slots: the slots' indices; an index past the last slot stands for none.
        sampling: the i-th entries belong to the i-th of `slots`.
    """

    def put(all_slots: Array, new: Array) -> Array:
        return all_slots.at[slots].set(new, mode="drop")

    return DecodeState(
        tokens=state.tokens,
        position=put(state.position, jnp.zeros_like(slots)),
        sampling=jax.tree.map(put, state.sampling, sampling),
        self_attention=state.self_attention,
        cross_attention=jax.tree.map(put, state.cross_attention, prefix.layers),
        cross_mask=put(state.cross_mask, prefix.mask),
    )


@partial(jax.jit, static_argnums=0, donate_argnums=3)
def step(
    config: DalleBartConfig, weights: DecoderWeights, unconditional: Prefix, state: DecodeState, steps: Int[Array, ""]
) -> DecodeState:
    """Draws the next `steps` tokens of every slot that is not finished.

    Args:
        config: the model's sizes.
        weights: the decoder's weights.
        unconditional: the prefix of the empty prompt, shared by all slots.
        state: is given up.
        steps: the quantum; a value, so that any number runs the same program.
    """
    return jax.lax.fori_loop(0, steps, lambda _, state: _draw_one(config, weights, unconditional, state), state)


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
    guided = guide(*jnp.split(logits, 2), sampling.guidance_scale)
    uniform = uniforms(sampling.seed, sampling.candidate, position)
    drawn = draw(guided, uniform, sampling.temperature, sampling.top_k, sampling.top_p)
    drawn = jnp.where(active, drawn, state.tokens[slots, position])
    return DecodeState(
        tokens=state.tokens.at[slots, position].set(drawn),
        position=state.position + active,
        sampling=sampling,
        self_attention=self_attention,
        cross_attention=state.cross_attention,
        cross_mask=state.cross_mask,
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
    places = jnp.arange(config.image_length)
    self_mask = places <= both[:, None]
    rows = jnp.arange(both.shape[0])
    x = (weights.embed_tokens[previous] + weights.embed_positions[position]).T
    x = normalize(jnp.concatenate([x, x], axis=1), weights.embed_norm)
    self_attention = []
    for layer, past, cross, cross_unconditional in zip(
        weights.layers, state.self_attention, state.cross_attention, unconditional.layers, strict=True
    ):
        qkv = jnp.split(project(layer.self_qkv, normalize(x, layer.self_norm)), 3)
        q, k, v = (split_heads(each, heads) for each in qkv)
        past = KeysValues(past.keys.at[rows, :, both].set(k), past.values.at[rows, :, both].set(v))
        self_attention.append(past)
        x = x + normalize(project(layer.self_out, attend(q, past, self_mask)), layer.self_out_norm)
        q = split_heads(project(layer.cross_q, normalize(x, layer.cross_norm)), heads)
        conditional_q, unconditional_q = jnp.split(q, 2)
        conditional = attend(conditional_q, cross, state.cross_mask)
        h = jnp.concatenate([conditional, attend(unconditional_q, cross_unconditional, unconditional.mask)], axis=1)
        x = x + normalize(project(layer.cross_out, h), layer.cross_out_norm)
        x = x + feed_forward(x, layer)
    logits = project(weights.head, normalize(x, weights.final_norm))
    return logits.T.astype(jnp.float32), tuple(self_attention)
