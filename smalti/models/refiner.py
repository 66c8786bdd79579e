"""Refiner: a U-Net that draws the details of an enlarged picture again, by rectified flow from the picture itself.

The flow runs from `x0 = start + noise` at time 0 to the original picture `x1` at time 1 along `xt = (1 - t) x0 + t x1`
(Liu et al. 2022, https://arxiv.org/abs/2209.03003; a start that depends on the data as in Albergo et al. 2023,
https://arxiv.org/abs/2310.03725). The network predicts x1 from xt, the start, t, the picture's code vectors and the
encoding of its prompt. Pixels are in [0, 1]. Arrays are `[batch, height, width, channels]`.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from smalti.checkpoints.loading import REFINER_LAYOUT
from smalti.compilation import kept_shapes, program
from smalti.models.layers import (
    ConvBlock,
    Dense,
    Parameters,
    apply,
    join_patches,
    precision,
    shapes,
    split_patches,
)
from smalti.models.network_files import load_network, save_network
from smalti.models.refiner_config import GROUPS
from smalti.models.refiner_config import RefinerConfig as RefinerConfig
from smalti.models.vqgan import Downsample, Upsample

TIME_CHANNELS = 64
"""Width of the sinusoidal embedding of the time."""
MAX_FREQUENCY = 1000.0
"""Highest frequency of that embedding, in radians over the whole flow."""
MAX_WAVES = 32.0
"""Highest frequency of the embedding of positions, in half waves over a picture."""


class Block(ConvBlock):
    """Base of the blocks."""

    groups = GROUPS

    def dense(self, features: int, name: str) -> nn.Dense:
        """Makes a product with bias."""
        return nn.Dense(features, dtype=self.dtype, precision=precision(self.dtype), name=name)


class ResnetBlock(Block):
    """Two 3 by 3 convolutions with a residual connection; the time scales and shifts between them (FiLM)."""

    features: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width inputs"], time: Float[Array, "batch time"]
    ) -> Float[Array, "batch height width features"]:
        """Returns the output of the block with the residual added."""
        h = self.conv(self.features, 3, "conv1")(nn.swish(self.norm("norm1")(x)))
        scale, shift = jnp.split(self.dense(2 * self.features, "film")(nn.swish(time)), 2, axis=-1)
        h = self.norm("norm2")(h) * (1 + scale[:, None, None]) + shift[:, None, None]
        h = self.conv(self.features, 3, "conv2")(nn.swish(h))
        if x.shape[-1] != self.features:
            x = self.conv(self.features, 1, "nin_shortcut")(x)
        return x + h


class Attention(Block):
    """Attention of all positions of the picture to a context, with a residual connection; softmax in float32."""

    heads: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        context: Float[Array, "batch positions channels"] | None = None,
        mask: Int[Array, "batch positions"] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """Returns the output of the block with the residual added.

        Args:
            x: the hidden states.
            context: what to attend to; None for the picture itself.
            mask: 1 at positions of the context that count; None if all do.
        """
        batch, height, width, channels = x.shape
        h = self.norm("norm")(x) + grid_positions(height, width, channels).astype(self.dtype)
        h = h.reshape(batch, height * width, channels)
        keys = h if context is None else context
        q, k, v = (
            Dense(channels, self.dtype, name=name)(source).reshape(
                batch, -1, self.heads, channels // self.heads
            )
            for name, source in (("q", h), ("k", keys), ("v", keys))
        )
        scores = jnp.einsum("bqhc,bkhc->bhqk", q, k, precision=precision(self.dtype)).astype(jnp.float32)
        scores = scores * (channels // self.heads) ** -0.5
        if mask is not None:
            scores = jnp.where(mask[:, None, None, :] > 0, scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores).astype(self.dtype)
        attended = jnp.einsum("bhqk,bkhc->bqhc", weights, v, precision=precision(self.dtype))
        return x + Dense(channels, self.dtype, name="proj_out")(attended.reshape(x.shape))


class Mid(Block):
    """The blocks at the lowest resolution, which see the whole picture, its tokens and its prompt."""

    heads: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        time: Float[Array, "batch time"],
        context: Float[Array, "batch positions channels"],
        mask: Int[Array, "batch positions"],
    ) -> Float[Array, "batch height width channels"]:
        """Returns the hidden states after block, self-attention, cross-attention, block."""
        x = ResnetBlock(self.dtype, x.shape[-1], name="block_1")(x, time)
        x = Attention(self.dtype, self.heads, name="attn_1")(x)
        x = Attention(self.dtype, self.heads, name="cross_1")(x, context, mask)
        return ResnetBlock(self.dtype, x.shape[-1], name="block_2")(x, time)


class Level(Block):
    """The blocks of one resolution."""

    features: int
    blocks: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width inputs"], time: Float[Array, "batch time"]
    ) -> Float[Array, "batch height width features"]:
        """Returns the hidden states after all blocks."""
        for index in range(self.blocks):
            x = ResnetBlock(self.dtype, self.features, name=f"block_{index}")(x, time)
        return x


class RefinerModule(Block):
    """The whole network."""

    config: RefinerConfig

    @nn.compact
    def __call__(
        self,
        noisy: Float[Array, "batch height width 3"],
        start: Float[Array, "batch height width 3"],
        t: Float[Array, " batch"],
        codes: Float[Array, "batch rows columns code_dim"],
        text: Float[Array, "batch positions text_dim"],
        mask: Int[Array, "batch positions"],
    ) -> Float[Array, "batch height width 3"]:
        """Returns the prediction of the original pictures, not clipped, in float32; see `predict`."""
        config, last = self.config, len(self.config.channels) - 1
        time = self.dense(4 * config.channels[0], "time_0")(time_embedding(t).astype(self.dtype))
        time = self.dense(4 * config.channels[0], "time_1")(nn.swish(time))
        context, mask = self._context(codes, text, mask)
        pixels = jnp.concatenate([noisy, start], axis=-1).astype(self.dtype)
        x = self.conv(config.channels[0], 3, "conv_in")(join_patches(pixels, config.patch_size))
        skips = []
        for level, features in enumerate(config.channels):
            x = Level(self.dtype, features, config.num_res_blocks, name=f"down_{level}")(x, time)
            skips.append(x)
            if level < last:
                x = Downsample(self.dtype, name=f"downsample_{level}")(x)
        x = Mid(self.dtype, config.attention_heads, name="mid")(x, time, context, mask)
        for level in reversed(range(last + 1)):
            x = jnp.concatenate([x, skips[level]], axis=-1)
            x = Level(self.dtype, config.channels[level], config.num_res_blocks, name=f"up_{level}")(x, time)
            if level > 0:
                x = Upsample(self.dtype, name=f"upsample_{level}")(x)
        # Zero at first, so that an untrained refiner keeps the enlarged picture.
        out = self.conv(3 * config.patch_size**2, 3, "conv_out", kernel_init=nn.initializers.zeros)
        x = out(nn.swish(self.norm("norm_out")(x)))
        return start + split_patches(x, config.patch_size).astype(jnp.float32)

    def _context(
        self,
        codes: Float[Array, "batch rows columns code_dim"],
        text: Float[Array, "batch positions text_dim"],
        mask: Int[Array, "batch positions"],
    ) -> tuple[Float[Array, "batch context channels"], Int[Array, "batch context"]]:
        """Returns tokens and prompt as one sequence, and its mask."""
        channels = self.config.channels[-1]
        batch, rows, columns, _ = codes.shape
        tiles = Dense(channels, self.dtype, name="codes_in")(codes.astype(self.dtype))
        tiles = tiles + grid_positions(rows, columns, channels).astype(self.dtype)
        words = Dense(channels, self.dtype, name="text_in")(text.astype(self.dtype))
        context = jnp.concatenate([tiles.reshape(batch, rows * columns, channels), words], axis=1)
        every = jnp.ones((batch, rows * columns), mask.dtype)
        return context, jnp.concatenate([every, mask], axis=1)


def time_embedding(t: Float[Array, " batch"]) -> Float[Array, "batch channels"]:
    """Returns sines and cosines of times in [0, 1]."""
    frequencies = np.geomspace(1.0, MAX_FREQUENCY, TIME_CHANNELS // 2, dtype=np.float32)
    angles = t[:, None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def grid_positions(rows: int, columns: int, channels: int) -> Float[Array, "rows columns channels"]:
    """Returns sines and cosines of the places in a picture; grids of different sizes have the same coordinates."""
    frequencies = np.pi * np.geomspace(1.0, MAX_WAVES, channels // 4, dtype=np.float32)

    def waves(count: int) -> np.ndarray:
        angles = (np.arange(count, dtype=np.float32)[:, None] + 0.5) / count * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)

    vertical = np.broadcast_to(waves(rows)[:, None], (rows, columns, channels // 2))
    horizontal = np.broadcast_to(waves(columns)[None], (rows, columns, channels // 2))
    return jnp.asarray(np.concatenate([vertical, horizontal], axis=-1), jnp.float32)


@partial(jax.jit, static_argnums=0)
def initialize(config: RefinerConfig, key: Array) -> dict[str, Any]:
    """Returns random parameters for an untrained refiner."""
    side = config.tile_size
    pixels = jnp.zeros((1, side, side, 3))
    codes = jnp.zeros((1, 1, 1, config.code_dim))
    text = jnp.zeros((1, 1, config.text_dim))
    mask = jnp.ones((1, 1), jnp.int32)
    module = RefinerModule(jnp.float32, config)
    return module.init(key, pixels, pixels, jnp.zeros(1), codes, text, mask)["params"]


@kept_shapes
def parameter_shapes(config: RefinerConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter by its name in the checkpoint."""
    return shapes(jax.eval_shape(partial(initialize, config), jax.random.key(0)))


@program(static_argnums=(0,), static_argnames=("dtype",))
def predict(
    config: RefinerConfig,
    params: Parameters,
    noisy: Float[Array, "batch height width 3"],
    start: Float[Array, "batch height width 3"],
    t: Float[Array, " batch"],
    codes: Float[Array, "batch rows columns code_dim"],
    text: Float[Array, "batch positions text_dim"],
    mask: Int[Array, "batch positions"],
    *,
    dtype: DTypeLike,
) -> Float[Array, "batch height width 3"]:
    """Returns the prediction of the original pictures, not clipped to [0, 1].

    Args:
        config: the configuration.
        params: the parameters.
        noisy: the pictures at time t of the flow.
        start: the enlarged pictures.
        t: the time in [0, 1].
        codes: the code vectors of the pictures' tokens.
        text: hidden states of the text encoder.
        mask: 1 at text, 0 at padding.
        dtype: the type to compute in.
    """
    return apply(RefinerModule(dtype, config), params, noisy, start, t, codes, text, mask)


@dataclass(frozen=True)
class Refiner:
    """A refiner: its configuration and its parameters; `dtype` is the type to compute in."""

    config: RefinerConfig
    params: Parameters
    dtype: DTypeLike = jnp.float32

    @classmethod
    def load(cls, folder: Path | str, *, dtype: DTypeLike = jnp.float32) -> "Refiner":
        """Loads a folder: `config.json` beside `model.safetensors`.

        Raises:
            ConfigError: the configuration is invalid.
            ModelError: the folder has no configuration or no weights.
            CheckpointError: the file is damaged or does not fit the configuration; names the tensor.
        """
        config = RefinerConfig.load(Path(folder))
        return cls(config, load_network(Path(folder), parameter_shapes(config), REFINER_LAYOUT), dtype)

    def save(self, folder: Path | str) -> None:
        """Writes `config.json` and `model.safetensors` into a folder, which is created if necessary."""
        save_network(Path(folder), self.params, self.config.fields())

    def predict(
        self,
        noisy: Float[Array | np.ndarray, "batch height width 3"],
        start: Float[Array | np.ndarray, "batch height width 3"],
        t: Float[Array | np.ndarray, " batch"],
        codes: Float[Array | np.ndarray, "batch rows columns code_dim"],
        text: Float[Array | np.ndarray, "batch positions text_dim"],
        mask: Int[Array | np.ndarray, "batch positions"],
    ) -> Float[Array, "batch height width 3"]:
        """Returns the prediction of the original pictures; see `predict`."""
        return predict(self.config, self.params, noisy, start, t, codes, text, mask, dtype=self.dtype)
