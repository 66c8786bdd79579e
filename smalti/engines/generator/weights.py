"""The decoder's parameters in the form that the generator computes with.

The checkpoint stacks its layers. Here each layer has its own arrays, since slicing a stacked array inside a program
copies it on a CPU. Products with the same input are fused (q, k and v; both branches of GLU): with few rows, a product
costs as much as reading its weights, and one long read is faster than several short ones.

Kernels are `[outputs, inputs]`, the transpose of the checkpoint's, and stand on the left of the product: with the few
rows of a decode step, XLA's matrix product on a CPU is about twice as fast that way.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from smalti.engines.generator.partition import WEIGHT_RULES, Partition
from smalti.models.bart import DECODER_LAYERS, DalleBartConfig, parameter_shapes
from smalti.models.layers import Parameters, Shaped, unflatten


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Norm:
    """Parameters of a layer norm, in float32 as it computes; `scale` is None where the checkpoint has none."""

    bias: Float[Shaped, " features"]
    scale: Float[Shaped, " features"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """Parameters of one decoder layer. Kernels are `[outputs, inputs]`, with a leading axis where several are fused.

    The feed-forward width is padded with zeros to what the devices compute with (`Partition.padded_width`).
    """

    self_norm: Norm
    self_qkv: Float[Shaped, "3 d_model d_model"]
    self_out: Float[Shaped, "d_model d_model"]
    self_out_norm: Norm
    cross_norm: Norm
    cross_q: Float[Shaped, "d_model d_model"]
    cross_kv: Float[Shaped, "2 d_model d_model"]
    cross_out: Float[Shaped, "d_model d_model"]
    cross_out_norm: Norm
    glu_norm: Norm
    glu_in: Float[Shaped, "2 ffn d_model"]
    """The activated branch, then the linear branch."""
    glu_inner_norm: Norm
    glu_out: Float[Shaped, "d_model ffn"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class DecoderWeights:
    """Parameters of the whole decoder."""

    embed_tokens: Float[Shaped, "vocab_and_start d_model"]
    embed_positions: Float[Shaped, "image_length d_model"]
    embed_norm: Norm
    layers: tuple[LayerWeights, ...]
    final_norm: Norm
    head: Float[Shaped, "vocab d_model"]
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

    def place(name: str, array: np.ndarray, dtype: DTypeLike) -> Array:
        return partition.place(np.ascontiguousarray(array, dtype), WEIGHT_RULES, name)

    return _arrange(config, params, dtype, partition, place)


def abstract_weights(config: DalleBartConfig, dtype: DTypeLike, partition: Partition) -> DecoderWeights:
    """Returns what stands for a model's weights on the devices, to compile for them; see `decoder_weights`."""
    # One number in the host's memory, whatever the shape.
    params = unflatten(
        {name: np.broadcast_to(np.int8(0), shape) for name, shape in parameter_shapes(config).items()}
    )

    def place(name: str, array: np.ndarray, dtype: DTypeLike) -> Array:
        return jnp.zeros(array.shape, dtype)

    shapes = jax.eval_shape(lambda: _arrange(config, params, dtype, partition, place))
    return partition.abstract(shapes, WEIGHT_RULES)


def _arrange(
    config: DalleBartConfig,
    params: Parameters,
    dtype: DTypeLike,
    partition: Partition,
    place: Callable[[str, np.ndarray, DTypeLike], Array],
) -> DecoderWeights:
    """Arranges the parameters; `place` puts one array with a name on the devices, in a type."""
    padding = partition.padded_width(config.decoder_ffn_dim) - config.decoder_ffn_dim

    def norm(name: str, parameters: Parameters, padding: int = 0) -> Norm:
        return Norm(
            **{
                each: place(f"{name}/{each}", _pad(np.asarray(parameter), 0, padding), np.float32)
                for each, parameter in parameters.items()
            }
        )

    def layer_weights(layer: Parameters, prefix: str) -> LayerWeights:
        self_attention, cross_attention, glu = (
            layer[name] for name in ("FlaxBartAttention_0", "FlaxBartAttention_1", "GLU_0")
        )

        def kernel(name: str, module: Parameters, *names: str, pad: int | None = None) -> Array:
            """Places a kernel, or several that are fused into one; `pad` is the axis of the feed-forward width."""
            parts = [module[each]["kernel"].T for each in names]
            if pad is not None:
                parts = [_pad(part, pad, padding) for part in parts]
            return place(prefix + name, np.stack(parts) if len(parts) > 1 else parts[0], dtype)

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
            glu_in=kernel("glu_in", glu, "Dense_0", "Dense_1", pad=0),
            glu_inner_norm=norm(prefix + "glu_inner_norm", glu["LayerNorm_1"], padding),
            glu_out=kernel("glu_out", glu, "Dense_2", pad=1),
        )

    decoder, stacked = params["model"]["decoder"], params
    for key in DECODER_LAYERS:
        stacked = stacked[key]
    stacked = jax.tree.map(np.asarray, stacked)
    head = np.asarray(params["lm_head"]["kernel"]).T[: config.decoder_start_token_id]
    return DecoderWeights(
        embed_tokens=place("embed_tokens", np.asarray(decoder["embed_tokens"]["embedding"]), dtype),
        embed_positions=place("embed_positions", np.asarray(decoder["embed_positions"]["embedding"]), dtype),
        embed_norm=norm("embed_norm", decoder["layernorm_embedding"]),
        layers=tuple(
            layer_weights(jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked), f"layers/{layer}/")
            for layer in range(config.decoder_layers)
        ),
        final_norm=norm("final_norm", decoder["final_ln"]),
        head=place("head", head, dtype),
    )


def _pad(array: np.ndarray, axis: int, count: int) -> np.ndarray:
    """Appends zeros along an axis."""
    if not count:
        return array
    return np.pad(array, [(0, count if each == axis else 0) for each in range(array.ndim)])
