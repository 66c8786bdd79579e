"""The judge: a small convolutional network that says what a picture shows, and how accurate it is."""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from smalti.models.layers import Dense, Parameters, apply, compute_dtype, join_patches, precision
from smalti.training.data.world.description import WorldDescription
from smalti.training.data.world.grounds import ground_kinds
from smalti.training.judge.samples import Region, Samples, scaled, view
from smalti.training.loop.settings import Count
from smalti.validation import Strict

_GROUPS = 8
_BATCH = 16
"""The usual number of candidates of a prompt."""


class JudgeSizes(Strict):
    """Sizes of the network."""

    resolution: Literal[64, 128] = 64
    """Side of the pictures that the network takes; others are scaled."""
    width: Count = 64
    """Channels at 16 by 16 positions; a multiple of 16."""
    blocks: tuple[Count, Count, Count] = (1, 2, 1)
    """Residual blocks at 16 by 16, 8 by 8 and 4 by 4 positions, with one, two and three times the width."""


class Logits(NamedTuple):
    """Output of the network, as logits."""

    things: Float[Array, "batch things"]
    colours: Float[Array, "batch colours"]
    backgrounds: Float[Array, "batch backgrounds"]
    whole: Float[Array, "batch 2"]
    """Logits of damaged and whole. Separate from the things, so that those are learned before damage is."""


class JudgeModule(nn.Module):
    """The network, from pixels to logits."""

    dtype: DTypeLike
    sizes: JudgeSizes
    things: int
    colours: int
    backgrounds: int

    @nn.compact
    def __call__(self, pixels: Float[Array, "batch side side 3"]) -> Logits:
        """Returns the logits; pixels are in [0, 1]."""
        width = self.sizes.width
        x = join_patches(2 * pixels - 1, self.sizes.resolution // 32)
        x = self._convolution(width // 2)(x)
        for stage, blocks in enumerate(self.sizes.blocks, start=1):
            # A matrix product is much faster than a strided convolution on XLA's CPU backend.
            x = join_patches(self._activated(x), 2)
            x = Dense(width * stage, self.dtype, init_std=x.shape[-1] ** -0.5)(x)
            for _ in range(blocks):
                y = self._convolution(width * stage)(self._activated(x))
                x = x + self._convolution(width * stage)(self._activated(y))
        x = self._activated(x)
        features = jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=-1).astype(jnp.float32)
        counts = (self.things, self.colours, self.backgrounds, 2)
        return Logits(*(nn.Dense(count)(features) for count in counts))

    def _convolution(self, features: int) -> nn.Conv:
        return nn.Conv(features, (3, 3), use_bias=False, dtype=self.dtype, precision=precision(self.dtype))

    def _activated(self, x: Float[Array, "batch rows columns features"]) -> Array:
        return nn.gelu(nn.GroupNorm(_GROUPS, dtype=self.dtype)(x))


@dataclass(frozen=True)
class Verdicts:
    """The verdicts of a judge on some pictures."""

    things: Int[np.ndarray, " pictures"]
    """Index of the thing in the world, or the number of things if there is no whole thing."""
    colours: Int[np.ndarray, " pictures"]
    backgrounds: Int[np.ndarray, " pictures"]


@runtime_checkable
class PictureJudge(Protocol):
    """Anything that says what pictures show, such as a trained `Judge`."""

    def look(
        self, pictures: UInt8[np.ndarray, "pictures height width 3"], region: Region = "whole"
    ) -> Verdicts:
        """Judges one figure of each picture: the only one, or the left or right one of two."""


class Judge:
    """A trained network, ready to judge."""

    def __init__(self, sizes: JudgeSizes, counts: tuple[int, int, int], params: Parameters) -> None:
        """Makes the judge.

        Args:
            sizes: sizes of the network.
            counts: numbers of things, colours and backgrounds, as `counts_of` returns them.
            params: weights of the network.
        """
        self._sizes = sizes
        self._params = params
        self._verdicts = jax.jit(partial(_verdicts, JudgeModule(compute_dtype(), sizes, *counts)))

    def look(
        self, pictures: UInt8[np.ndarray, "pictures height width 3"], region: Region = "whole"
    ) -> Verdicts:
        """Judges one figure of each picture: the only one, or the left or right one of two."""
        views = np.stack([view(picture, region) for picture in pictures])
        views = scaled(views, self._sizes.resolution)
        said = []
        for start in range(0, len(views), _BATCH):
            part = views[start : start + _BATCH]
            # Padded to one size, so that the network is compiled once.
            padded = np.concatenate([part, np.repeat(part[-1:], _BATCH - len(part), axis=0)])
            said.append([np.asarray(best)[: len(part)] for best in self._verdicts(self._params, padded)])
        return Verdicts(*(np.concatenate(each) for each in zip(*said, strict=True)))


class Accuracy(Strict):
    """Accuracy of a judge, as shares."""

    pictures: int
    thing: float
    """For damaged pictures: share for which the judge says that there is no whole thing."""
    colour: float
    background: float
    fooled: float
    """Share of damaged pictures taken for the thing that they were made from; equals `thing` for whole pictures."""


def accuracy(judge: PictureJudge, samples: Samples) -> Accuracy:
    """Measures the accuracy of a judge on samples."""
    verdicts = judge.look(samples.pixels)
    return Accuracy(
        pictures=len(samples.things),
        thing=float((verdicts.things == samples.things).mean()),
        colour=float(samples.colours[np.arange(len(samples.things)), verdicts.colours].mean()),
        background=float((verdicts.backgrounds == samples.backgrounds).mean()),
        fooled=float((verdicts.things == samples.meant).mean()),
    )


def counts_of(description: WorldDescription) -> tuple[int, int, int]:
    """Returns the numbers of things, colours and backgrounds of a world, with a thing's own colours and white."""
    colours = 1 + len(description.colours) + len(description.shades)
    return len(description.things), colours, len(ground_kinds(description))


def _verdicts(
    module: JudgeModule, params: Parameters, pixels: UInt8[Array, "batch side side 3"]
) -> tuple[Array, Array, Array]:
    said: Logits = apply(module, params, pixels.astype(jnp.float32) / 255)
    things = jnp.where(said.whole.argmax(-1) == 1, said.things.argmax(-1), module.things)
    return things, said.colours.argmax(-1), said.backgrounds.argmax(-1)
