"""The decoder's parameters in the form the generator computes with.

The checkpoint stacks its layers; here each layer has arrays of its own, since in a compiled program for CPUs a slice
of a stacked array is a copy. Products that share their input are fused into one, q with k and v, and both branches of
GLU: with few rows a product costs the reading of its weights, and one long read is faster than three short ones.

Kernels are `[outputs, inputs]`, the transpose of the checkpoint's, and stand on the left of the product: with the few
rows of a decode step XLA's matrix product on a CPU is about twice as fast that way.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from smalti.models.bart import DECODER_LAYERS, DalleBartConfig
from smalti.models.layers import Parameters


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Norm:
    """A layer norm's parameters; `scale` is None where the checkpoint has none."""

    bias: Float[Array, "features"]
    scale: Float[Array, "features"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer. Kernels are `[outputs, inputs]`; those that were fused have an axis for it in front."""

    self_norm: Norm
    self_qkv: Float[Array, "3 d_model d_model"]
    self_out: Float[Array, "d_model d_model"]
    self_out_norm: Norm
    cross_norm: Norm
    cross_q: Float[Array, "d_model d_model"]
    cross_kv: Float[Array, "2 d_model d_model"]
    cross_out: Float[Array, "d_model d_model"]
    cross_out_norm: Norm
    glu_norm: Norm
    glu_in: Float[Array, "2 ffn d_model"]
    """The activated branch, then the linear one."""
    glu_inner_norm: Norm
    glu_out: Float[Array, "d_model ffn"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecoderWeights:
    """The whole decoder."""

    embed_tokens: Float[Array, "vocab_and_start d_model"]
    embed_positions: Float[Array, "image_length d_model"]
    embed_norm: Norm
    layers: tuple[LayerWeights, ...]
    final_norm: Norm
    head: Float[Array, "vocab d_model"]
    """Only the image tokens' rows: the start token is never drawn."""


def decoder_weights(config: DalleBartConfig, params: Parameters, dtype: DTypeLike) -> DecoderWeights:
    """Arranges a checkpoint's decoder parameters for the generator, in the type to compute in."""
    decoder = params["model"]["decoder"]
    stacked = params
    for key in DECODER_LAYERS:
        stacked = stacked[key]
    layers = tuple(
        _layer_weights(jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked), dtype)
        for layer in range(config.decoder_layers)
    )
    head = params["lm_head"]["kernel"].T[: config.decoder_start_token_id]
    return DecoderWeights(
        embed_tokens=jnp.asarray(decoder["embed_tokens"]["embedding"], dtype),
        embed_positions=jnp.asarray(decoder["embed_positions"]["embedding"], dtype),
        embed_norm=_norm(decoder["layernorm_embedding"], dtype),
        layers=layers,
        final_norm=_norm(decoder["final_ln"], dtype),
        head=jnp.asarray(head, dtype),
    )


def _norm(parameters: Parameters, dtype: DTypeLike) -> Norm:
    return Norm(**{name: jnp.asarray(parameter, dtype) for name, parameter in parameters.items()})


def _layer_weights(layer: Parameters, dtype: DTypeLike) -> LayerWeights:
    self_attention, cross_attention, glu = (
        layer[name] for name in ("FlaxBartAttention_0", "FlaxBartAttention_1", "GLU_0")
    )

    def single(module: Parameters, name: str) -> Any:
        return jnp.asarray(module[name]["kernel"].T, dtype)

    def fuse(module: Parameters, *names: str) -> Any:
        return jnp.stack([single(module, name) for name in names])

    return LayerWeights(
        self_norm=_norm(layer["LayerNorm_0"], dtype),
        self_qkv=fuse(self_attention, "q_proj", "k_proj", "v_proj"),
        self_out=single(self_attention, "out_proj"),
        self_out_norm=_norm(layer["LayerNorm_1"], dtype),
        cross_norm=_norm(layer["LayerNorm_2"], dtype),
        cross_q=single(cross_attention, "q_proj"),
        cross_kv=fuse(cross_attention, "k_proj", "v_proj"),
        cross_out=single(cross_attention, "out_proj"),
        cross_out_norm=_norm(layer["LayerNorm_3"], dtype),
        glu_norm=_norm(glu["LayerNorm_0"], dtype),
        glu_in=fuse(glu, "Dense_0", "Dense_1"),
        glu_inner_norm=_norm(glu["LayerNorm_1"], dtype),
        glu_out=single(glu, "Dense_2"),
    )
