"""The judge: a small convolutional network that says what a picture shows, and how accurate it is."""

from dataclasses import dataclass, fields
from functools import partial
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from smalti.models.layers import Dense, Parameters, apply, compute_dtype, join_patches, precision
from smalti.training.data.world.description import MAX_COUNT, RELATIONS, WorldDescription
from smalti.training.data.world.grounds import ground_kinds
from smalti.training.judge.samples import Samples, scaled
from smalti.training.judge.views import Region, view
from smalti.training.loop.settings import Count
from smalti.validation import Strict

_GROUPS = 8
_BATCH = 16
"""The usual number of candidates of a prompt."""


class JudgeSizes(Strict):
    """Sizes of the network."""

    resolution: Literal[64, 96, 128] = 64
    """Side of the pictures that the network takes; others are scaled."""
    width: Count = 64
    """Channels at 16 by 16 positions; a multiple of 16."""
    blocks: tuple[Count, Count, Count] = (1, 2, 1)
    """Residual blocks at 16 by 16, 8 by 8 and 4 by 4 positions, with one, two and three times the width."""


class HeadSizes(NamedTuple):
    """Numbers of the classes that a judge tells apart, with a thing's own colours and white."""

    things: int
    colours: int
    backgrounds: int
    styles: int


class Logits(NamedTuple):
    """Output of the network, as logits."""

    things: Float[Array, "batch things"]
    colours: Float[Array, "batch colours"]
    backgrounds: Float[Array, "batch backgrounds"]
    whole: Float[Array, "batch 2"]
    """Logits of damaged and whole. Separate from the things, so that those are learned before damage is."""
    styles: Float[Array, "batch styles"]
    counts: Float[Array, "batch counts"]
    """Logits of one, two and more copies of a thing."""
    relations: Float[Array, "batch relations"]
    """Logits of how two things stand, and of a single thing."""


class JudgeModule(nn.Module):
    """The network, from pixels to logits."""

    dtype: DTypeLike
    sizes: JudgeSizes
    heads: HeadSizes

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
        things, colours, backgrounds, styles = self.heads
        classes = (things, colours, backgrounds, 2, styles, MAX_COUNT, len(RELATIONS) + 1)
        return Logits(*(nn.Dense(count)(features) for count in classes))

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
    styles: Int[np.ndarray, " pictures"]
    counts: Int[np.ndarray, " pictures"]
    """Number of copies of a thing, less one."""
    relations: Int[np.ndarray, " pictures"]
    """Index in `RELATIONS`, or the number of relations if there is a single thing, or copies of it."""


_VERDICTS = tuple(field.name for field in fields(Verdicts))


@runtime_checkable
class PictureJudge(Protocol):
    """Anything that says what pictures show, such as a trained `Judge`."""

    def look(
        self, pictures: UInt8[np.ndarray, "pictures height width 3"], region: Region = "whole"
    ) -> Verdicts:
        """Judges one figure of each picture: the only one, or the one of two that is in a region."""


class Judge:
    """A trained network, ready to judge."""

    def __init__(self, sizes: JudgeSizes, heads: HeadSizes, params: Parameters) -> None:
        """Makes the judge.

        Args:
            sizes: sizes of the network.
            heads: numbers of classes, as `heads_of` returns them.
            params: weights of the network.
        """
        self._sizes = sizes
        self._params = params
        self._verdicts = jax.jit(partial(_verdicts, JudgeModule(compute_dtype(), sizes, heads)))

    def look(
        self, pictures: UInt8[np.ndarray, "pictures height width 3"], region: Region = "whole"
    ) -> Verdicts:
        """Judges one figure of each picture: the only one, or the one of two that is in a region."""
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
    style: float | None
    """None if no picture has a style that the judge should tell, as with damaged ones; so too below."""
    count: float | None
    relation: float | None


def accuracy(judge: PictureJudge, samples: Samples) -> Accuracy:
    """Measures the accuracy of a judge on samples."""
    verdicts = judge.look(samples.pixels)
    single = samples.meant >= 0
    right_colours = samples.colours[np.arange(len(samples.things)), verdicts.colours]
    return Accuracy(
        pictures=len(samples.things),
        thing=float((verdicts.things == samples.things)[single].mean()),
        colour=float(right_colours[single].mean()),
        background=float((verdicts.backgrounds == samples.backgrounds).mean()),
        fooled=float((verdicts.things == samples.meant)[single].mean()),
        style=_share(verdicts.styles, samples.styles),
        count=_share(verdicts.counts, samples.counts),
        relation=_share(verdicts.relations, samples.relations),
    )


def heads_of(description: WorldDescription) -> HeadSizes:
    """Returns the numbers of classes of a world."""
    return HeadSizes(
        things=len(description.things),
        colours=1 + len(description.colours) + len(description.shades),
        backgrounds=len(ground_kinds(description)),
        styles=len(description.styles),
    )


def _share(said: Int[np.ndarray, " pictures"], right: Int[np.ndarray, " pictures"]) -> float | None:
    """Returns the share of right verdicts, among the pictures where the judge should say something."""
    told = right >= 0
    return float((said == right)[told].mean()) if told.any() else None


def _verdicts(
    module: JudgeModule, params: Parameters, pixels: UInt8[Array, "batch side side 3"]
) -> tuple[Array, ...]:
    said: Logits = apply(module, params, pixels.astype(jnp.float32) / 255)
    best = {name: logits.argmax(-1) for name, logits in said._asdict().items()}
    whole = best.pop("whole") == 1
    best["things"] = jnp.where(whole, best["things"], module.heads.things)
    return tuple(best[name] for name in _VERDICTS)
