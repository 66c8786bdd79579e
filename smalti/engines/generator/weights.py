"""The decoder's parameters in the form that the generator computes with.

The checkpoint stacks its layers. Here each layer has its own arrays, since slicing a stacked array inside a program
copies it on a CPU. Products with the same input are fused (q, k and v; both branches of GLU): with few rows, a product
costs as much as reading its weights, and one long read is faster than several short ones.

Kernels are `[outputs, inputs]`, the transpose of the checkpoint's, and stand on the left of the product: with the few
rows of a decode step, XLA's matrix product on a CPU is about twice as fast that way.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from smalti.engines.generator.partition import WEIGHT_RULES, Partition
from smalti.models.bart import DECODER_LAYERS, DalleBartConfig
from smalti.models.layers import Parameters


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Norm:
    """Parameters of a layer norm; `scale` is None where the checkpoint has none."""

    bias: Float[Array, " features"]
    scale: Float[Array, " features"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """Parameters of one decoder layer. Kernels are `[outputs, inputs]`, with a leading axis where several are fused."""

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
    """The activated branch, then the linear branch."""
    glu_inner_norm: Norm
    glu_out: Float[Array, "d_model ffn"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class DecoderWeights:
    """Parameters of the whole decoder."""

    embed_tokens: Float[Array, "vocab_and_start d_model"]
    embed_positions: Float[Array, "image_length d_model"]
    embed_norm: Norm
    layers: tuple[LayerWeights, ...]
    final_norm: Norm
    head: Float[Array, "vocab d_model"]
    """Only the rows of image tokens: the start token is never sampled."""


def decoder_weights(
    config: DalleBartConfig, params: Parameters, dtype: DTypeLike, partition: Partition
) -> DecoderWeights:
    """Arranges a checkpoint's decoder parameters for the generator.

    Arrays are arranged on the host, one at a time, so that a device never holds more than its part.

    Args:
        config: configuration of the model.
        params: parameters of the checkpoint, on the host or on a device.
        dtype: the type to compute in.
        partition: the devices.
    """

    def place(name: str, *parts: Any) -> Array:
        """Puts an array on the devices; several parts are fused into one array first."""
        array = np.stack(parts) if len(parts) > 1 else parts[0]
        return partition.place(np.ascontiguousarray(array, dtype), WEIGHT_RULES, name)

    def norm(name: str, parameters: Parameters) -> Norm:
        return Norm(**{each: place(f"{name}/{each}", parameter) for each, parameter in parameters.items()})

    def layer_weights(layer: Parameters, prefix: str) -> LayerWeights:
        self_attention, cross_attention, glu = (
            layer[name] for name in ("FlaxBartAttention_0", "FlaxBartAttention_1", "GLU_0")
        )

        def kernel(name: str, module: Parameters, *names: str) -> Array:
            return place(prefix + name, *(module[each]["kernel"].T for each in names))

        return LayerWeights(
            self_norm=norm(prefix + "self_norm", layer["LayerNorm_0"]),
            self_qkv=kernel("self_qkv", self_attention, "q_proj", "k_proj", "v_proj"),
            self_out=kernel("self_out", self_attention, "out_proj"),
            self_out_norm=norm(prefix + "self_out_norm", layer["LayerNorm_1"]),
            cross_norm=norm(prefix + "cross_norm", layer["LayerNorm_2"]),
            cross_q=kernel("cross_q", cross_attention, "q_proj"),
            cross_kv=kernel("cross_kv", cross_attention, "k_proj", "v_proj"),
            cross_out=kernel("cross_out", cross_attention, "out_proj"),
            cross_out_norm=norm(prefix + "cross_out_norm", layer["LayerNorm_3"]),
            glu_norm=norm(prefix + "glu_norm", glu["LayerNorm_0"]),
            glu_in=kernel("glu_in", glu, "Dense_0", "Dense_1"),
            glu_inner_norm=norm(prefix + "glu_inner_norm", glu["LayerNorm_1"]),
            glu_out=kernel("glu_out", glu, "Dense_2"),
        )

    decoder, stacked = params["model"]["decoder"], params
    for key in DECODER_LAYERS:
        stacked = stacked[key]
    stacked = jax.tree.map(np.asarray, stacked)
    head = np.asarray(params["lm_head"]["kernel"]).T[: config.decoder_start_token_id]
    return DecoderWeights(
        embed_tokens=place("embed_tokens", np.asarray(decoder["embed_tokens"]["embedding"])),
        embed_positions=place("embed_positions", np.asarray(decoder["embed_positions"]["embedding"])),
        embed_norm=norm("embed_norm", decoder["layernorm_embedding"]),
        layers=tuple(
            layer_weights(jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked), f"layers/{layer}/")
            for layer in range(config.decoder_layers)
        ),
        final_norm=norm("final_norm", decoder["final_ln"]),
        head=place("head", head),
    )
