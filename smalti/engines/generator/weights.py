"""The decoder's parameters in the form that the generator computes with, and the two operations that use them.

The checkpoint stacks its layers. Here each layer has its own arrays, since slicing a stacked array inside a program
copies it on a CPU. Products with the same input are fused (q, k and v; both branches of GLU): with few rows, a product
costs as much as reading its weights, and one long read is faster than several short ones.

Kernels are `[outputs, inputs]`, the transpose of the checkpoint's, and stand on the left of the product: with the few
rows of a decode step, XLA's matrix product on a CPU is about twice as fast that way.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8

from smalti.engines.generator.partition import WEIGHT_RULES, Partition
from smalti.models.bart import DECODER_LAYERS, LAYER_NORM_EPSILON, DalleBartConfig, parameter_shapes
from smalti.models.layers import Parameters, Shaped, precision, unflatten


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Norm:
    """Parameters of a layer norm, in float32 as it computes; `scale` is None where the checkpoint has none."""

    bias: Float[Shaped, " features"]
    scale: Float[Shaped, " features"] | None = None
    by_feature: bool = field(default=False, metadata={"static": True})
    """Whether mean and deviation are finished for each feature anew (`CacheLayout.norms_by_feature`)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantized:
    """A kernel in int8, with a scale for each output."""

    kernel: Int8[Shaped, "*fused outputs inputs"]
    scale: Float[Shaped, "*fused outputs"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """Parameters of one decoder layer. Kernels are `[outputs, inputs]`, with a leading axis where several are fused.

    The feed-forward width is padded with zeros to what the devices compute with (`Partition.padded_width`).
    """

    self_norm: Norm
    self_qkv: Float[Shaped, "3 d_model d_model"] | Quantized
    self_out: Float[Shaped, "d_model d_model"] | Quantized
    self_out_norm: Norm
    cross_norm: Norm
    cross_q: Float[Shaped, "d_model d_model"] | Quantized
    cross_kv: Float[Shaped, "2 d_model d_model"] | Quantized
    cross_out: Float[Shaped, "d_model d_model"] | Quantized
    cross_out_norm: Norm
    glu_norm: Norm
    glu_in: Float[Shaped, "2 ffn d_model"] | Quantized
    """The activated branch, then the linear branch."""
    glu_inner_norm: Norm
    glu_out: Float[Shaped, "d_model ffn"] | Quantized


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class DecoderWeights:
    """Parameters of the whole decoder."""

    embed_tokens: Float[Shaped, "vocab_and_start d_model"]
    embed_positions: Float[Shaped, "image_length d_model"]
    embed_norm: Norm
    layers: tuple[LayerWeights, ...]
    final_norm: Norm
    head: Float[Shaped, "vocab d_model"] | Quantized
    """Only the rows of image tokens: the start token is never sampled."""


def project(
    kernel: Float[Array, "*fused outputs inputs"] | Quantized, x: Float[Array, "inputs ..."]
) -> Array:
    """Returns `kernel @ x`, `[*fused, outputs, *rows]`."""
    if isinstance(kernel, Quantized):
        # Rounded to the type of `x` before it is scaled: devices that share a sum exchange it in that type.
        product = jnp.tensordot(kernel.kernel.astype(x.dtype), x, 1, precision=precision(x.dtype))
        return (
            product.astype(jnp.float32) * kernel.scale.reshape(*kernel.scale.shape, *(1,) * (x.ndim - 1))
        ).astype(x.dtype)
    return jnp.tensordot(kernel, x, 1, precision=precision(kernel.dtype))


def normalize(
    x: Float[Array, "features rows"], norm: Norm, width: int | None = None
) -> Float[Array, "features rows"]:
    """Layer norm of every column; statistics in float32.

    With `width`, only the first features count, and the others are zeros; what they become is undefined.
    """
    wide = x.astype(jnp.float32)
    width = width or len(x)
    sums, squares = wide.sum(0), jnp.square(wide).sum(0)
    if norm.by_feature:
        # A choice that depends on the feature, or the compiler would take it out of the features again.
        own = (jnp.arange(len(x)) < width)[:, None]
        sums, squares = jnp.where(own, sums, 0), jnp.where(own, squares, width)
    mean = sums / width
    variance = jnp.maximum(squares / width - jnp.square(mean), 0)
    scaled = (wide - mean) * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)
    if norm.scale is not None:
        scaled = scaled * norm.scale[:, None]
    return (scaled + norm.bias[:, None]).astype(x.dtype)


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

    return _arrange(config, params, dtype, partition, place, _shorten)


def abstract_weights(config: DalleBartConfig, dtype: DTypeLike, partition: Partition) -> DecoderWeights:
    """Returns what stands for a model's weights on the devices, to compile for them; see `decoder_weights`."""
    # One number in the host's memory, whatever the shape.
    params = unflatten(
        {name: np.broadcast_to(np.int8(0), shape) for name, shape in parameter_shapes(config).items()}
    )

    def place(name: str, array: np.ndarray, dtype: DTypeLike) -> Array:
        return jnp.zeros(array.shape, dtype)

    def shorten(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return kernel, kernel[..., 0]

    shapes = jax.eval_shape(lambda: _arrange(config, params, dtype, partition, place, shorten))
    return partition.abstract(shapes, WEIGHT_RULES)


def _arrange(
    config: DalleBartConfig,
    params: Parameters,
    dtype: DTypeLike,
    partition: Partition,
    place: Callable[[str, np.ndarray, DTypeLike], Array],
    shorten: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> DecoderWeights:
    """Arranges the parameters.

    Args:
        config: configuration of the model.
        params: parameters of the checkpoint, on the host.
        dtype: the type to compute in.
        partition: the devices.
        place: puts one array with a name on the devices, in a type.
        shorten: returns a kernel in the range of int8, and the scale of each output.
    """
    padding = partition.padded_width(config.decoder_ffn_dim) - config.decoder_ffn_dim

    def norm(name: str, parameters: Parameters, padding: int = 0) -> Norm:
        return Norm(
            **{
                each: place(f"{name}/{each}", _pad(np.asarray(parameter), 0, padding), np.float32)
                for each, parameter in parameters.items()
            },
            by_feature=partition.cached.norms_by_feature,
        )

    def place_kernel(name: str, kernel: np.ndarray) -> Array | Quantized:
        if not partition.int8_weights:
            return place(name, kernel, dtype)
        short, scale = shorten(kernel)
        return Quantized(place(f"{name}/kernel", short, np.int8), place(f"{name}/scale", scale, np.float32))

    def layer_weights(layer: Parameters, prefix: str) -> LayerWeights:
        self_attention, cross_attention, glu = (
            layer[name] for name in ("FlaxBartAttention_0", "FlaxBartAttention_1", "GLU_0")
        )

        def kernel(name: str, module: Parameters, *names: str, pad: int | None = None) -> Array | Quantized:
            """Places a kernel, or several that are fused into one; `pad` is the axis of the feed-forward width."""
            parts = [module[each]["kernel"].T for each in names]
            if pad is not None:
                parts = [_pad(part, pad, padding) for part in parts]
            return place_kernel(prefix + name, np.stack(parts) if len(parts) > 1 else parts[0])

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
        head=place_kernel("head", head),
    )


def _pad(array: np.ndarray, axis: int, count: int) -> np.ndarray:
    """Appends zeros along an axis."""
    if not count:
        return array
    return np.pad(array, [(0, count if each == axis else 0) for each in range(array.ndim)])


def _shorten(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a kernel in the range of int8, and the scale of each output."""
    scale = np.maximum(np.abs(kernel).max(-1).astype(np.float32), 1e-30) / 127
    return np.rint(kernel / scale[..., None]), scale
