"""The perceptual loss LPIPS: pictures are compared by the features of a VGG16.

Zhang et al. 2018, https://arxiv.org/abs/1801.03924. The weights are the user's: a VGG16 in torchvision's naming, and,
if wanted, the linear heads of the package `lpips`. Without heads, all features of a layer count equally.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from pydantic import Field

from smalti.checkpoints.loading import load_tensors
from smalti.errors import CheckpointError
from smalti.training.loop.settings import Count
from smalti.validation import Strict

_CONVOLUTIONS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Indices in torchvision's `features` of the convolutions of each stage; a pooling is between two stages."""
MIN_CROP = 2 ** (len(_CONVOLUTIONS) - 1)
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


class PerceptualSettings(Strict):
    """Settings of the perceptual loss."""

    weights: str
    """File of a VGG16, as a state dict of torch or safetensors, in torchvision's naming."""
    heads: str = ""
    """File of the linear heads of LPIPS for VGG; empty for none."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    start: Annotated[int, Field(ge=0)] = 0
    """Step from which on there is a perceptual loss."""
    crop: Annotated[Count, Field(ge=MIN_CROP)] = 64
    """Side in pixels of the part of each picture that is compared."""


class _Convolution(NamedTuple):
    kernel: Float[Array, "height width inputs features"]
    bias: Float[Array, " features"]


class Perceptual:
    """The features of a VGG16, and the distance of pictures in them."""

    def __init__(
        self, stages: Sequence[Sequence[_Convolution]], heads: Sequence[Float[Array, " _features"]]
    ) -> None:
        self._stages = stages
        self._heads = heads

    @classmethod
    def load(cls, weights: Path, heads: Path | None = None) -> "Perceptual":
        """Loads the convolutions of a VGG16, and the heads.

        The channels are what the file has, so a thinned network works too. Layers of the classifier are ignored.

        Raises:
            ModelError: a file is missing, or cannot be read.
            CheckpointError: a tensor is missing, or does not fit the layer before it; names the tensor.
        """
        tensors = load_tensors(weights, lambda name: name.startswith("features."))
        channels = 3
        stages = []
        for indices in _CONVOLUTIONS:
            stage = []
            for index in indices:
                kernel = _require(tensors, f"features.{index}.weight", weights, (None, channels, 3, 3))
                channels = kernel.shape[0]
                bias = _require(tensors, f"features.{index}.bias", weights, (channels,))
                stage.append(_Convolution(jnp.asarray(kernel.transpose(2, 3, 1, 0)), jnp.asarray(bias)))
            stages.append(stage)
        widths = [len(stage[-1].bias) for stage in stages]
        if heads is None:
            return cls(stages, [jnp.ones(width) for width in widths])
        linear = load_tensors(heads)
        return cls(
            stages,
            [
                jnp.asarray(
                    _require(linear, f"lin{number}.model.1.weight", heads, (1, width, 1, 1)).reshape(-1)
                )
                for number, width in enumerate(widths)
            ],
        )

    def distance(
        self, a: Float[Array, "pictures height width 3"], b: Float[Array, "pictures height width 3"]
    ) -> Float[Array, ""]:
        """Returns the mean distance of pictures in [0, 1], by equation 1 of the paper."""
        both = jnp.concatenate([a, b])
        total = jnp.float32(0)
        for features, head in zip(self._features(both), self._heads, strict=True):
            # As in the authors' code, except that the square root of 0 has no gradient.
            unit = features * jax.lax.rsqrt(jnp.square(features).sum(-1, keepdims=True) + 1e-10)
            of_a, of_b = jnp.split(unit, 2)
            total += (jnp.square(of_a - of_b) * head).sum(-1).mean()
        return total

    def _features(
        self, pixels: Float[Array, "pictures height width 3"]
    ) -> list[Float[Array, "pictures _rows _columns _features"]]:
        """Returns the output of the last convolution of each stage."""
        x = (pixels - jnp.array(_MEAN)) / jnp.array(_DEVIATION)
        found: list[Array] = []
        for stage in self._stages:
            if found:
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
            for kernel, bias in stage:
                x = jax.lax.conv_general_dilated(
                    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
                x = jax.nn.relu(x + bias)
            found.append(x)
        return found


def _require(
    tensors: dict[str, np.ndarray], name: str, path: Path, shape: tuple[int | None, ...]
) -> np.ndarray:
    if name not in tensors:
        raise CheckpointError(f"{path}: tensor {name} is missing")
    found = tensors[name]
    if len(found.shape) != len(shape) or any(
        want not in (None, have) for want, have in zip(shape, found.shape, strict=True)
    ):
        wanted = "x".join("any" if side is None else str(side) for side in shape)
        raise CheckpointError(f"{path}: tensor {name} has the shape {found.shape}, must be {wanted}")
    return found.astype(np.float32)
