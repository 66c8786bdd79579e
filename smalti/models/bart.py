"""DALL·E mini's transformer: a text encoder, and a decoder over image tokens.

The graph is that of the published mini-1 and mega-1 models: NormFormer layer norms (Shleifer et al. 2021,
https://arxiv.org/abs/2110.09456, figure 1), GLU feed-forward (Shazeer 2020, https://arxiv.org/abs/2002.05202,
equation 6, with GELU), learned absolute positions, no biases in the products. Names of modules and parameters are
those of the original checkpoint, so that loading one is a table of names.

A layer is a Flax module over one layer's parameters. A stack keeps its layers' parameters stacked on axis 0, as in the
checkpoint, and scans over them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from smalti.checkpoints.loading import DALLEBART_LAYOUT
from smalti.compilation import Program, kept_shapes
from smalti.models.bart_config import DalleBartConfig as DalleBartConfig
from smalti.models.layers import Dense, Parameters, apply, precision, shapes
from smalti.models.network_files import load_network, save_network

LAYER_NORM_EPSILON = 1e-5

# Path of the stacked layer parameters in the checkpoint.
ENCODER_LAYERS = ("model", "encoder", "layers", "FlaxBartEncoderLayers")
DECODER_LAYERS = ("model", "decoder", "layers", "FlaxBartDecoderLayers")


def layer_norm(name: str, dtype: DTypeLike, *, scale: bool) -> nn.LayerNorm:
    """Makes a layer norm; without a scale where only products follow, since their kernels contain it."""
    return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, use_scale=scale, dtype=dtype, name=name)


class Attention(nn.Module):
    """Multi-head attention without biases: `softmax(q kᵀ / √head_size + mask) v` (Vaswani et al. 2017, equation 1)."""

    heads: int
    dtype: DTypeLike
    init_std: float

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "batch tokens d_model"],
        context: Float[Array, "batch length d_model"],
        mask: Bool[Array, "#batch 1 #tokens length"],
    ) -> Float[Array, "batch tokens d_model"]:
        """Attends from `queries` over the positions of `context` that `mask` allows; softmax in float32."""
        d_model = queries.shape[-1]
        project = partial(Dense, d_model, self.dtype, self.init_std)

        def split(
            x: Float[Array, "batch positions d_model"],
        ) -> Float[Array, "batch positions heads head_size"]:
            return x.reshape(*x.shape[:2], self.heads, d_model // self.heads)

        q = split(project(name="q_proj")(queries))
        k = split(project(name="k_proj")(context))
        v = split(project(name="v_proj")(context))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q * q.shape[-1] ** -0.5, k, precision=precision(self.dtype))
        scores = jnp.where(mask, scores.astype(jnp.float32), jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores).astype(self.dtype)
        attended = jnp.einsum("bhqk,bkhd->bqhd", weights, v, precision=precision(self.dtype))
        return project(name="out_proj")(attended.reshape(queries.shape))


class GLU(nn.Module):
    """The feed-forward block: `LN(gelu(LN(x) W0) * (LN(x) W1)) W2`, with the exact GELU."""

    width: int
    dtype: DTypeLike
    init_std: float

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens d_model"]) -> Float[Array, "batch tokens d_model"]:
        """Returns the output of the block, without the residual."""
        dense = partial(Dense, dtype=self.dtype, init_std=self.init_std)
        h = layer_norm("LayerNorm_0", self.dtype, scale=False)(x)
        gate = nn.gelu(dense(self.width, name="Dense_0")(h), approximate=False)
        h = gate * dense(self.width, name="Dense_1")(h)
        h = layer_norm("LayerNorm_1", self.dtype, scale=False)(h)
        return dense(x.shape[-1], name="Dense_2")(h)


class EncoderLayer(nn.Module):
    """One layer of the text encoder."""

    config: DalleBartConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length d_model"], mask: Bool[Array, "batch 1 1 length"]
    ) -> Float[Array, "batch length d_model"]:
        """Returns the hidden states after this layer."""
        config, norm = self.config, partial(layer_norm, dtype=self.dtype)
        attention = Attention(
            config.encoder_attention_heads, self.dtype, config.init_std, name="FlaxBartAttention_0"
        )
        h = norm("LayerNorm_0", scale=False)(x)
        x = x + norm("LayerNorm_1", scale=True)(attention(h, h, mask))
        return x + GLU(config.encoder_ffn_dim, self.dtype, config.init_std, name="GLU_0")(x)


class DecoderLayer(nn.Module):
    """One layer of the image-token decoder, over all positions at once (teacher forcing)."""

    config: DalleBartConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens d_model"],
        causal_mask: Bool[Array, "1 1 tokens tokens"],
        encoding: Float[Array, "batch length d_model"],
        encoding_mask: Bool[Array, "batch 1 1 length"],
    ) -> Float[Array, "batch tokens d_model"]:
        """Returns the hidden states after this layer."""
        config, norm = self.config, partial(layer_norm, dtype=self.dtype)
        attention = partial(Attention, config.decoder_attention_heads, self.dtype, config.init_std)
        h = norm("LayerNorm_0", scale=False)(x)
        x = x + norm("LayerNorm_1", scale=True)(attention(name="FlaxBartAttention_0")(h, h, causal_mask))
        h = norm("LayerNorm_2", scale=False)(x)
        attended = attention(name="FlaxBartAttention_1")(h, encoding, encoding_mask)
        x = x + norm("LayerNorm_3", scale=True)(attended)
        return x + GLU(config.decoder_ffn_dim, self.dtype, config.init_std, name="GLU_0")(x)


def _normalize(
    x: Float[Array, "*leading d_model"], parameters: Parameters, dtype: DTypeLike
) -> Float[Array, "*leading d_model"]:
    norm = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, use_scale="scale" in parameters, dtype=dtype)
    return apply(norm, parameters, x)


def _embed(
    parameters: Parameters, ids: Int[Array, "batch positions"], dtype: DTypeLike
) -> Float[Array, "batch positions d_model"]:
    """Returns the layer norm of token embedding plus position embedding."""
    # Cast before the sum: parameters may be float16 in the file, but the sum is computed in `dtype`.
    x = parameters["embed_tokens"]["embedding"][ids].astype(dtype)
    x = x + parameters["embed_positions"]["embedding"][: ids.shape[1]].astype(dtype)
    return _normalize(x, parameters["layernorm_embedding"], dtype)


def _run_stack(
    layer: Callable[[Parameters, Array], Array], stacked: Parameters, x: Array, *, remat: bool, unroll: bool
) -> Array:
    """Runs the layers in order, by a scan over their stacked parameters."""
    body = jax.checkpoint(layer) if remat else layer
    x, _ = jax.lax.scan(lambda x, parameters: (body(parameters, x), None), x, stacked, unroll=unroll)
    return x


def encode(
    config: DalleBartConfig,
    params: Parameters,
    input_ids: Int[Array, "batch length"],
    attention_mask: Int[Array, "batch length"],
    *,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    unroll: bool = False,
) -> Float[Array, "batch length d_model"]:
    """Runs the text encoder.

    Args:
        config: configuration of the model.
        params: the parameters, layers stacked; only `model/encoder` is used.
        input_ids: text tokens; at most `max_text_length` per row.
        attention_mask: 1 at text, 0 at padding.
        dtype: the type to compute in.
        remat: recompute activations in the backward pass, to save memory in training.
        unroll: compile every layer separately; faster on a CPU, where a loop runs on fewer threads.
    """
    parameters = params["model"]["encoder"]
    mask = attention_mask[:, None, None, :].astype(bool)
    module = EncoderLayer(config, dtype)
    x = _run_stack(
        lambda layer, x: apply(module, layer, x, mask),
        parameters["layers"]["FlaxBartEncoderLayers"],
        _embed(parameters, input_ids, dtype),
        remat=remat,
        unroll=unroll,
    )
    return _normalize(x, parameters["final_ln"], dtype)


def logits(
    config: DalleBartConfig,
    params: Parameters,
    encoding: Float[Array, "batch length d_model"],
    attention_mask: Int[Array, "batch length"],
    decoder_input_ids: Int[Array, "batch tokens"],
    *,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    unroll: bool = False,
) -> Float[Array, "batch tokens vocab"]:
    """Runs the decoder over all positions at once; each attends to those before it.

    Args:
        config: configuration of the model.
        params: the parameters, layers stacked; `model/decoder` and `lm_head` are used.
        encoding: hidden states of the text encoder.
        attention_mask: 1 at text, 0 at padding.
        decoder_input_ids: the start token, then image tokens; at most `image_length` per row.
        dtype: the type to compute in; the logits are float32.
        remat: recompute activations in the backward pass, to save memory in training.
        unroll: compile every layer separately; faster on a CPU, where a loop runs on fewer threads.
    """
    parameters = params["model"]["decoder"]
    tokens = decoder_input_ids.shape[1]
    causal_mask = jnp.tril(jnp.ones((tokens, tokens), bool))[None, None]
    encoding_mask = attention_mask[:, None, None, :].astype(bool)
    module = DecoderLayer(config, dtype)
    encoding = encoding.astype(dtype)
    x = _run_stack(
        lambda layer, x: apply(module, layer, x, causal_mask, encoding, encoding_mask),
        parameters["layers"]["FlaxBartDecoderLayers"],
        _embed(parameters, decoder_input_ids, dtype),
        remat=remat,
        unroll=unroll,
    )
    x = _normalize(x, parameters["final_ln"], dtype)
    head = Dense(config.image_vocab_size + 1, dtype)
    return apply(head, params["lm_head"], x).astype(jnp.float32)


@partial(jax.jit, static_argnums=0)
def initialize(config: DalleBartConfig, key: Array) -> dict[str, Any]:
    """Returns random parameters for an untrained model (normal with `init_std`), layers stacked."""
    keys = iter(jax.random.split(key, 8))
    d_model, dtype = config.d_model, jnp.float32
    states, mask = jnp.zeros((1, 1, d_model)), jnp.ones((1, 1, 1, 1), bool)

    def stack(layers: int, module: nn.Module, *inputs: Array) -> Any:
        return jax.vmap(lambda key: module.init(key, *inputs)["params"])(jax.random.split(next(keys), layers))

    def half(vocab: int, positions: int, layers: dict[str, Any]) -> dict[str, Any]:
        normal = nn.initializers.normal(config.init_std)
        return {
            "embed_tokens": {"embedding": normal(next(keys), (vocab, d_model))},
            "embed_positions": {"embedding": normal(next(keys), (positions, d_model))},
            "layernorm_embedding": {"bias": jnp.zeros(d_model), "scale": jnp.ones(d_model)},
            "layers": layers,
            "final_ln": {"bias": jnp.zeros(d_model)},
        }

    encoder = stack(config.encoder_layers, EncoderLayer(config, dtype), states, mask)
    decoder = stack(config.decoder_layers, DecoderLayer(config, dtype), states, mask, states, mask)
    head = nn.initializers.normal(config.init_std)(next(keys), (d_model, config.image_vocab_size + 1))
    return {
        "lm_head": {"kernel": head},
        "model": {
            "encoder": half(
                config.encoder_vocab_size, config.max_text_length, {"FlaxBartEncoderLayers": encoder}
            ),
            "decoder": half(
                config.image_vocab_size + 1, config.image_length, {"FlaxBartDecoderLayers": decoder}
            ),
        },
    }


@kept_shapes
def parameter_shapes(config: DalleBartConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter by its name in the checkpoint, layers stacked."""
    return shapes(jax.eval_shape(partial(initialize, config), jax.random.key(0)))


_encode = Program(encode, static_argnums=(0,), static_argnames=("dtype",))
_logits = jax.jit(logits, static_argnums=0, static_argnames="dtype")


@dataclass(frozen=True)
class DalleBart:
    """A DALL·E mini transformer: its configuration and its parameters.

    Parameters keep the type they have in the file (float32, float16, bfloat16); `dtype` is the type to compute in.
    """

    config: DalleBartConfig
    params: Parameters
    dtype: DTypeLike = jnp.float32

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        dtype: DTypeLike = jnp.float32,
        part: str | None = None,
        on_host: bool = False,
    ) -> "DalleBart":
        """Loads a folder: `config.json` beside `model.safetensors`, `flax_model.msgpack`, or min-dalle's files.

        Args:
            folder: the folder.
            dtype: the type to compute in.
            part: "encoder" or "decoder" reads only that half of the weights; None reads both.
            on_host: keep the weights in the host's memory, for a model that is larger than one device.

        Raises:
            ConfigError: the configuration has an option that is not supported.
            ModelError: the folder has no configuration or no weights.
            CheckpointError: a file is damaged or does not fit the configuration; names the tensor.
        """
        config = DalleBartConfig.load(Path(folder))
        select = _part_selector(part)
        params = load_network(
            Path(folder), parameter_shapes(config), DALLEBART_LAYOUT, select=select, on_host=on_host
        )
        return cls(config, params, dtype)

    def save(self, folder: Path | str) -> None:
        """Writes `config.json` and `model.safetensors` into a folder, which is created if necessary."""
        save_network(Path(folder), self.params, self.config.fields())

    def encode(
        self,
        input_ids: Int[Array | np.ndarray, "batch length"],
        attention_mask: Int[Array | np.ndarray, "batch length"],
    ) -> Float[Array, "batch length d_model"]:
        """Returns the encoding of text tokens; the function `encode` documents the arguments."""
        return _encode(self.config, self.params, input_ids, attention_mask, dtype=self.dtype)

    def logits(
        self,
        encoding: Float[Array | np.ndarray, "batch length d_model"],
        attention_mask: Int[Array | np.ndarray, "batch length"],
        decoder_input_ids: Int[Array | np.ndarray, "batch tokens"],
    ) -> Float[Array, "batch tokens vocab"]:
        """Returns the logits of each next token; the function `logits` documents the arguments."""
        return _logits(
            self.config, self.params, encoding, attention_mask, decoder_input_ids, dtype=self.dtype
        )


def _part_selector(part: str | None) -> Callable[[str], bool]:
    if part is None:
        return lambda name: True
    if part not in ("encoder", "decoder"):
        raise ValueError(f"part: {part!r} must be 'encoder' or 'decoder'")
    prefixes = ("model/encoder/",) if part == "encoder" else ("model/decoder/", "lm_head/")
    return lambda name: name.startswith(prefixes)
