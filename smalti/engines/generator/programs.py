"""The compiled programs of the generator: prefill, prime, insert, release, step.

They compute what `smalti.models.bart.logits` computes, one token at a time: keys and values of self-attention are
cached, those of cross-attention are computed once per prompt. `tests/engines/test_generator.py` compares the two.

Hidden states are `[d_model, rows]`; `smalti.engines.generator.weights` explains why the kernel stands on the left.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smalti.compilation import program
from smalti.engines.generator.attention import Blocks, KeysValues, combine, keep
from smalti.engines.generator.partition import PREFIX_RULES, STATE_RULES, Partition
from smalti.engines.generator.sampling import guide, sample, uniforms
from smalti.engines.generator.state import DecodeState, Prefix, Sampling
from smalti.engines.generator.weights import DecoderWeights, LayerWeights, normalize, project
from smalti.models.bart import DalleBartConfig
from smalti.parameters import FREE

Attention = Callable[[Float[Array, "d_model rows"], LayerWeights], Float[Array, "d_model rows"]]


def run_layer(
    x: Float[Array, "d_model rows"],
    layer: LayerWeights,
    attend_self: Attention,
    attend_cross: Attention,
    ffn: int,
) -> Float[Array, "d_model rows"]:
    """Runs one decoder layer with the given self-attention and cross-attention; `ffn` is the unpadded width."""
    attended = project(layer.self_out, attend_self(normalize(x, layer.self_norm), layer))
    x = x + normalize(attended, layer.self_out_norm)
    attended = project(layer.cross_out, attend_cross(normalize(x, layer.cross_norm), layer))
    x = x + normalize(attended, layer.cross_out_norm)
    activated, linear = project(layer.glu_in, normalize(x, layer.glu_norm))
    h = normalize(jax.nn.gelu(activated, approximate=False) * linear, layer.glu_inner_norm, ffn)
    return x + project(layer.glu_out, h)


def embed(
    weights: DecoderWeights, tokens: Int[Array, " rows"], positions: Int[Array, " rows"]
) -> Float[Array, "d_model rows"]:
    """Returns the hidden states before the first layer."""
    return normalize(
        (weights.embed_tokens[tokens] + weights.embed_positions[positions]).T, weights.embed_norm
    )


@program(static_argnums=(0, 1))
def prefill(
    partition: Partition,
    config: DalleBartConfig,
    weights: DecoderWeights,
    encoding: Float[Array, "positions d_model"],
    attention_mask: Int[Array, " positions"],
) -> Prefix:
    """Computes the cross-attention keys and values of one prompt, for all layers."""

    layout = partition.layout_for(config)

    def keys_values(layer: LayerWeights) -> KeysValues:
        keys, values = project(layer.cross_kv, encoding.T.astype(weights.embed_tokens.dtype))
        return keep(layout, layout.by_position(keys), layout.by_position(values))

    prefix = Prefix(tuple(keys_values(layer) for layer in weights.layers), attention_mask[None].astype(bool))
    return partition.constrain(prefix, PREFIX_RULES)


@program(static_argnums=(0, 1))
def prime(
    partition: Partition,
    config: DalleBartConfig,
    weights: DecoderWeights,
    prefix: Prefix,
    unconditional: Prefix,
    tokens: Int[Array, " image_length"],
) -> tuple[KeysValues, ...]:
    """Computes the self-attention keys and values of given tokens, all positions at once.

    Args:
        partition: the devices.
        config: configuration of the model.
        weights: the decoder's weights.
        prefix: prefix of the prompt.
        unconditional: prefix of the empty prompt.
        tokens: the given tokens. Values after them do not matter, since a position attends only to earlier ones.

    Returns:
        Keys and values by layer, with two rows: the conditional and the unconditional half.
    """
    positions = jnp.arange(config.image_length)
    previous = jnp.where(positions == 0, config.decoder_start_token_id, jnp.roll(tokens, 1))
    causal = positions <= positions[:, None]
    halves = [
        _run_positions(partition, config, weights, half, previous, causal) for half in (prefix, unconditional)
    ]
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *halves)
    return partition.constrain(joined, PREFIX_RULES)


def _run_positions(
    partition: Partition,
    config: DalleBartConfig,
    weights: DecoderWeights,
    prefix: Prefix,
    previous: Int[Array, " image_length"],
    causal: Bool[Array, "image_length image_length"],
) -> tuple[KeysValues, ...]:
    """Runs the decoder over all positions of one picture; a row of `x` is a position."""
    layout = partition.layout_for(config)
    x = embed(weights, previous, jnp.arange(config.image_length))
    cache: list[KeysValues] = []

    def attend_self(x: Array, layer: LayerWeights) -> Array:
        q, k, v = project(layer.self_qkv, x)
        cache.append(keep(layout, layout.by_position(k), layout.by_position(v)))
        return layout.attend(layout.by_row(q), cache[-1], causal)

    for layer, cross in zip(weights.layers, prefix.layers, strict=True):

        def attend_cross(x: Array, layer: LayerWeights, cross: KeysValues = cross) -> Array:
            return layout.attend(layout.by_row(project(layer.cross_q, x)), cross, prefix.mask)

        x = run_layer(x, layer, attend_self, attend_cross, config.decoder_ffn_dim)
    return tuple(cache)


@program(static_argnums=(0,), donate_argnums=(1,))
def insert(
    partition: Partition,
    state: DecodeState,
    prefix: Prefix,
    slots: Int[Array, " slots"],
    sampling: Sampling,
    given: Int[Array, "slots image_length"],
) -> DecodeState:
    """Puts one prompt into several slots, which start at the first token.

    Args:
        partition: the devices.
        state: the state; donated.
        prefix: prefix of the prompt, from `prefill`.
        slots: indices of the slots, padded with an index past the last slot.
        sampling: sampling parameters; the i-th entries are for the i-th of `slots`.
        given: the given tokens of each of `slots`; `FREE` where one is sampled.
    """

    def put(all_slots: Array, new: Array) -> Array:
        return all_slots.at[slots].set(new, mode="drop")

    state = replace(
        state,
        position=put(state.position, jnp.zeros_like(slots)),
        given=put(state.given, given),
        sampling=jax.tree.map(put, state.sampling, sampling),
        cross_attention=partition.put_rows(state.cross_attention, prefix.layers, slots),
        cross_mask=put(state.cross_mask, prefix.mask),
    )
    return partition.constrain(state, STATE_RULES)


@program(static_argnums=(0,), donate_argnums=(1,))
def insert_primed(
    partition: Partition,
    state: DecodeState,
    primed: tuple[KeysValues, ...],
    tokens: Int[Array, " image_length"],
    length: Int[Array, ""],
    slots: Int[Array, " slots"],
) -> DecodeState:
    """Lets slots that were just inserted start after the given tokens at their beginning.

    Args:
        partition: the devices.
        state: the state; donated.
        primed: keys and values of the tokens, from `prime`.
        tokens: the given tokens at the beginning, padded.
        length: their number.
        slots: indices of the slots, padded with an index past the last slot.
    """
    axis = partition.cached.positions_axis
    size = state.self_attention[0][0][0].keys.shape[0]

    def block_of(new: KeysValues, start: int, end: int) -> KeysValues:
        return combine(axis, lambda new, _, axis: jax.lax.slice_in_dim(new, start, end, axis=axis), new, new)

    def blocks_of(new: KeysValues, like: Blocks) -> Blocks:
        ends = list(accumulate(block.keys.shape[axis] for block in like))
        return tuple(block_of(new, start, end) for start, end in zip([0, *ends], ends, strict=False))

    def put(group: int, kept: tuple[Blocks, ...]) -> tuple[Blocks, ...]:
        starts = 2 * slots - group * size
        # An index past the end is dropped; a negative one would count from the end.
        starts = jnp.where(starts < 0, size, starts)
        new = tuple(blocks_of(each, blocks) for each, blocks in zip(primed, kept, strict=True))
        return partition.put_rows(kept, new, starts)

    by_group = [put(group, kept) for group, kept in enumerate(zip(*state.self_attention, strict=True))]
    state = replace(
        state,
        tokens=state.tokens.at[slots].set(tokens, mode="drop"),
        position=state.position.at[slots].set(length, mode="drop"),
        self_attention=tuple(zip(*by_group, strict=True)),
    )
    return partition.constrain(state, STATE_RULES)


@program(static_argnums=(0,), donate_argnums=(1,))
def release(partition: Partition, state: DecodeState, slots: Int[Array, " slots"]) -> DecodeState:
    """Frees slots whose candidates are not finished; `slots` is padded with an index past the last slot."""
    finished = state.tokens.shape[1]
    state = replace(state, position=state.position.at[slots].set(finished, mode="drop"))
    return partition.constrain(state, STATE_RULES)


@program(static_argnums=(0, 1, 5, 6), donate_argnums=(4,))
def step(
    partition: Partition,
    config: DalleBartConfig,
    weights: DecoderWeights,
    unconditional: Prefix,
    state: DecodeState,
    steps: int,
    blocks: int,
) -> tuple[DecodeState, Int[Array, "slots steps"]]:
    """Generates the next tokens of every unfinished slot; where a token is given, it is taken.

    Args:
        partition: the devices.
        config: configuration of the model.
        weights: the decoder's weights.
        unconditional: prefix of the empty prompt, shared by all slots.
        state: the state; donated.
        steps: number of tokens per slot.
        blocks: number of blocks to attend over; no slot may advance beyond them. A state with several groups of slots
            needs all blocks, and each group attends only over those that it has filled.

    Returns:
        The new state, and the generated tokens. A slot that finishes on the way has fewer than `steps`; the rest of
        its row is undefined.
    """
    before = state.position
    state = jax.lax.fori_loop(
        0,
        steps,
        lambda _, state: _generate_one(partition, config, weights, unconditional, state, blocks),
        state,
    )
    positions = jnp.minimum(before[:, None] + jnp.arange(steps), config.image_length - 1)
    tokens = jnp.take_along_axis(state.tokens, positions, axis=1)
    return partition.constrain(state, STATE_RULES), partition.gather(tokens)


def _generate_one(
    partition: Partition,
    config: DalleBartConfig,
    weights: DecoderWeights,
    unconditional: Prefix,
    state: DecodeState,
    blocks: int,
) -> DecodeState:
    """Generates one token for every unfinished slot."""
    slots = jnp.arange(state.position.shape[0])
    active = state.position < config.image_length
    position = partition.by_slot(jnp.minimum(state.position, config.image_length - 1))
    previous = partition.by_slot(
        jnp.where(
            position == 0, config.decoder_start_token_id, state.tokens[slots, jnp.maximum(position - 1, 0)]
        )
    )
    furthest = jnp.where(active, position, 0)
    logits, self_attention = _decode(
        partition, config, weights, unconditional, state, previous, position, furthest, blocks
    )
    # Until here the devices of a layer have some logits of every slot; for sampling, all logits of some slots. What is
    # sampled from has its split named, or the compiler would split the whole state like the logits.
    sampling, given, drawn = jax.tree.map(
        partition.by_slot, (state.sampling, state.given[slots, position], state.tokens[slots, position])
    )
    conditional, unconditional_logits = (logits[:, :, half].T for half in range(2))
    in_layout = position < sampling.layout_length
    guidance_scale = jnp.where(in_layout, sampling.layout_guidance_scale, sampling.guidance_scale)
    temperature = jnp.where(in_layout, sampling.layout_temperature, sampling.temperature)
    guided = partition.spread_slots(guide(conditional, unconditional_logits, guidance_scale))
    uniform = uniforms(sampling.seed, sampling.candidate, position)
    token = partition.by_slot(sample(guided, uniform, temperature, sampling.top_k, sampling.top_p))
    token = jnp.where(given == FREE, token, given)
    token = jnp.where(active, token, drawn)
    state = replace(
        state,
        tokens=state.tokens.at[slots, position].set(token),
        position=state.position + active,
        self_attention=self_attention,
    )
    return partition.constrain(state, STATE_RULES)


def _decode(
    partition: Partition,
    config: DalleBartConfig,
    weights: DecoderWeights,
    unconditional: Prefix,
    state: DecodeState,
    previous: Int[Array, " slots"],
    position: Int[Array, " slots"],
    furthest: Int[Array, " slots"],
    blocks: int,
) -> tuple[Float[Array, "vocab slots 2"], tuple[tuple[Blocks, ...], ...]]:
    """Runs the decoder for one position of every slot; returns the logits and the updated keys and values.

    `furthest` is the position of an unfinished slot, and 0 for the others, whose results are ignored.
    """
    layout, slots = partition.layout_for(config), position.shape[0]
    # The conditional half of a slot, then its unconditional half.
    x = partition.by_column(jnp.repeat(embed(weights, previous, position), 2, axis=1))
    groups = len(state.self_attention[0])
    by_group = furthest.reshape(groups, -1)
    size = 2 * slots // groups
    group_rows = [slice(group * size, (group + 1) * size) for group in range(groups)]
    self_attention: list[tuple[Blocks, ...]] = []
    for layer, past, cross, cross_unconditional in zip(
        weights.layers, state.self_attention, state.cross_attention, unconditional.layers, strict=True
    ):

        def attend_self(x: Array, layer: LayerWeights, past: tuple[Blocks, ...] = past) -> Array:
            q, k, v = (layout.by_row(each) for each in project(layer.self_qkv, x))
            if groups == 1:
                attended, seen = layout.extend(q, k, v, past[0][:blocks], furthest)
                self_attention.append((seen + past[0][blocks:],))
                return attended
            extended = [
                layout.extend(q[rows], k[rows], v[rows], past[group], reached, reached.max())
                for group, (rows, reached) in enumerate(zip(group_rows, by_group, strict=True))
            ]
            self_attention.append(tuple(placed for _, placed in extended))
            return jnp.concatenate([attended for attended, _ in extended], axis=1)

        def attend_cross(
            x: Array, layer: LayerWeights, cross: KeysValues = cross, shared: KeysValues = cross_unconditional
        ) -> Array:
            queries = layout.by_row(project(layer.cross_q, x))
            return layout.attend_to_prompts(queries, cross, state.cross_mask, shared, unconditional.mask)

        x = partition.by_column(run_layer(x, layer, attend_self, attend_cross, config.decoder_ffn_dim))
    x = normalize(x, weights.final_norm).reshape(-1, slots, 2)
    if layout.halves_apart:
        logits = jnp.moveaxis(project(weights.head, jnp.moveaxis(x, 2, 1)), 1, 2).astype(jnp.float32)
        return logits, tuple(self_attention)
    logits = project(weights.head, x.reshape(-1, 2 * slots)).astype(jnp.float32)
    # Without the barrier, XLA fuses the following transposition into the product, which is then several times slower
    # on a CPU.
    return jax.lax.optimization_barrier(logits).reshape(-1, slots, 2), tuple(self_attention)
