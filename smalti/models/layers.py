"""Layers and tree helpers that the networks share."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from smalti.compilation import backend

GROUP_NORM_EPSILON = 1e-6

if TYPE_CHECKING:
    Shaped = Array
else:
    # What stands for an array when a program is compiled without any passes the checks of shapes, too.
    Shaped = Array | jax.ShapeDtypeStruct

Parameters = Mapping[str, Any]
"""A tree of arrays as in Flax; the path of a leaf, joined by "/", is its name in the checkpoint."""


def precision(dtype: DTypeLike) -> jax.lax.Precision:
    """Returns the matrix-multiply precision for a compute type.

    With float32, GPUs and TPUs would otherwise multiply in a shorter type, and a code that is almost as near as another
    would differ between machines.
    """
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else jax.lax.Precision.DEFAULT


def compute_dtype() -> DTypeLike:
    """Returns the type to compute in: bfloat16 on GPUs and TPUs, float32 elsewhere."""
    return jnp.bfloat16 if backend() in ("gpu", "tpu") else jnp.float32


class Dense(nn.Module):
    """`x @ kernel`, without bias, kernel `[inputs, features]`.

    Leading axes are flattened into one: on XLA's CPU backend, the gradient of a product is several times slower with a
    three-dimensional input.
    """

    features: int
    dtype: DTypeLike = jnp.float32
    init_std: float = 0.02

    @nn.compact
    def __call__(self, x: Float[Array, "*leading inputs"]) -> Float[Array, "*leading features"]:
        """Returns the product, in the layer's compute type."""
        kernel = self.param("kernel", nn.initializers.normal(self.init_std), (x.shape[-1], self.features))
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        product = jnp.dot(rows, jnp.asarray(kernel, self.dtype), precision=precision(self.dtype))
        return product.reshape(*x.shape[:-1], self.features)


class ConvBlock(nn.Module):
    """Base of the blocks of a convolutional network: the compute type, convolutions and norms."""

    groups: ClassVar[int]
    """Number of groups in every group norm."""
    dtype: DTypeLike

    def conv(self, features: int, size: int, name: str, **options: Any) -> nn.Conv:
        """Makes a convolution with bias; by default its padding keeps height and width."""
        options.setdefault("padding", size // 2)
        return nn.Conv(
            features, (size, size), dtype=self.dtype, precision=precision(self.dtype), name=name, **options
        )

    def norm(self, name: str) -> nn.GroupNorm:
        """Makes a group norm with scale and bias."""
        return nn.GroupNorm(self.groups, epsilon=GROUP_NORM_EPSILON, dtype=self.dtype, name=name)


def join_patches(
    x: Float[Array, "batch height width channels"], size: int
) -> Float[Array, "batch rows columns patch_channels"]:
    """Joins each square of `size` by `size` pixels into one, concatenating their channels."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // size, width // size, size * size * channels)


def average_squares(
    x: Float[Array, "batch height width channels"], size: int
) -> Float[Array, "batch rows columns channels"]:
    """Returns the mean of each square of `size` by `size` pixels."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // size, size, width // size, size, channels).mean((2, 4))


def split_patches(
    x: Float[Array, "batch rows columns patch_channels"], size: int
) -> Float[Array, "batch height width channels"]:
    """Splits each pixel into a square of `size` by `size` pixels; the inverse of `join_patches`."""
    batch, rows, columns, channels = x.shape
    x = x.reshape(batch, rows, columns, size, size, channels // size**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * size, columns * size, channels // size**2)


def flatten(tree: Parameters) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths, joined with "/"."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tree with these leaves; the inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(leaves), sep="/")


def shapes(tree: Parameters) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each leaf by its name."""
    return {name: tuple(leaf.shape) for name, leaf in flatten(tree).items()}


def apply(module: nn.Module, parameters: Parameters, *inputs: Any, **options: Any) -> Any:
    """Runs a module with its parameters."""
    return module.apply({"params": parameters}, *inputs, **options)
