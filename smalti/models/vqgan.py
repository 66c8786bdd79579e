"""VQGAN: pictures to image tokens and back (Esser et al. 2021, https://arxiv.org/abs/2012.09841).

As in DALL·E mini, pixels are in [0, 1] for both encoder and decoder, without a shift to [-1, 1]. Arrays are
`[batch, height, width, channels]`. Names of modules and parameters are those of the original Flax checkpoint.
"""

import math
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

from smalti.checkpoints.loading import VQGAN_LAYOUT, load_parameters
from smalti.compilation import kept_shapes, program
from smalti.errors import ModelError
from smalti.models.layers import (
    ConvBlock,
    Parameters,
    apply,
    average_squares,
    flatten,
    join_patches,
    precision,
    shapes,
    split_patches,
)
from smalti.models.network_files import load_network, save_network
from smalti.models.vqgan_config import GROUPS, Levels
from smalti.models.vqgan_config import VQGANConfig as VQGANConfig

CODEBOOK = "quantize/embedding/embedding"
"""Name of the codebook."""


class Block(ConvBlock):
    """Base of the blocks, whose layers match the checkpoint."""

    groups = GROUPS


class ResnetBlock(Block):
    """Two 3 by 3 convolutions, each after group norm and swish, with a residual connection."""

    features: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch height width features"]:
        """Returns the output of the block with the residual added."""
        h = self.conv(self.features, 3, "conv1")(nn.swish(self.norm("norm1")(x)))
        h = self.conv(self.features, 3, "conv2")(nn.swish(self.norm("norm2")(h)))
        if x.shape[-1] != self.features:
            x = self.conv(self.features, 1, "nin_shortcut")(x)
        return x + h


class AttnBlock(Block):
    """Single-head attention over all positions of the picture, with a residual connection."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Returns the output of the block with the residual added; softmax in float32."""
        batch, height, width, channels = x.shape
        h = self.norm("norm")(x)
        q, k, v = (self.conv(channels, 1, name)(h).reshape(batch, height * width, channels) for name in "qkv")
        scores = jnp.einsum("bqc,bkc->bqk", q, k, precision=precision(self.dtype)) * channels**-0.5
        weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(self.dtype)
        attended = jnp.einsum("bqk,bkc->bqc", weights, v, precision=precision(self.dtype))
        return x + self.conv(channels, 1, "proj_out")(attended.reshape(x.shape))


class Mid(Block):
    """The blocks at the lowest resolution, the same in encoder and decoder."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Returns the hidden states after residual block, attention, residual block."""
        x = ResnetBlock(self.dtype, x.shape[-1], name="block_1")(x)
        x = AttnBlock(self.dtype, name="attn_1")(x)
        return ResnetBlock(self.dtype, x.shape[-1], name="block_2")(x)


class Downsample(Block):
    """Halves height and width: zero padding at the bottom and the right, then a convolution of stride 2."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch half_h half_w channels"]:
        """Returns the picture at half the resolution."""
        return self.conv(x.shape[-1], 3, "conv", strides=2, padding=((0, 1), (0, 1)))(x)


class Upsample(Block):
    """Doubles height and width: nearest-neighbour upsampling, then a convolution."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch two_h two_w channels"]:
        """Returns the picture at double the resolution."""
        return self.conv(x.shape[-1], 3, "conv")(x.repeat(2, axis=1).repeat(2, axis=2))


class Level(Block):
    """The blocks of one resolution, followed by the change of resolution."""

    features: int
    blocks: int
    attention: bool
    resample: type[Downsample] | type[Upsample] | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch out_h out_w features"]:
        """Returns the hidden states of the next resolution."""
        for index in range(self.blocks):
            x = ResnetBlock(self.dtype, self.features, name=f"block_{index}")(x)
            if self.attention:
                x = AttnBlock(self.dtype, name=f"attn_{index}")(x)
        if self.resample is not None:
            x = self.resample(self.dtype, name=self.resample.__name__.lower())(x)
        return x


class Encoder(Block):
    """Pixels to vectors, before the 1 by 1 convolution and the quantization."""

    levels: Levels
    z_channels: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width 3"]
    ) -> Float[Array, "batch rows columns z_channels"]:
        """Returns one vector for each tile."""
        levels, last = self.levels, len(self.levels.ch_mult) - 1
        x = self.conv(levels.ch, 3, "conv_in")(join_patches(x, levels.patch_size))
        for level in range(last + 1):
            resample = Downsample if level < last else None
            x = Level(
                self.dtype,
                levels.channels(level),
                levels.num_res_blocks,
                levels.has_attention(level),
                resample,
                name=f"down_{level}",
            )(x)
        x = Mid(self.dtype, name="mid")(x)
        return self.conv(self.z_channels, 3, "conv_out")(nn.swish(self.norm("norm_out")(x)))


class Decoder(Block):
    """Quantized vectors, after the 1 by 1 convolution, to pixels."""

    levels: Levels

    @nn.compact
    def __call__(
        self, z: Float[Array, "batch rows columns z_channels"]
    ) -> Float[Array, "batch height width 3"]:
        """Returns pixels, not yet clipped to [0, 1]."""
        levels, last = self.levels, len(self.levels.ch_mult) - 1
        x = Mid(self.dtype, name="mid")(self.conv(levels.channels(last), 3, "conv_in")(z))
        for level in reversed(range(last + 1)):
            resample = Upsample if level > 0 else None
            x = Level(
                self.dtype,
                levels.channels(level),
                levels.num_res_blocks + 1,
                levels.has_attention(level),
                resample,
                name=f"up_{level}",
            )(x)
        x = self.conv(3 * levels.patch_size**2, 3, "conv_out")(nn.swish(self.norm("norm_out")(x)))
        return split_patches(x, levels.patch_size)


class Codebook(nn.Module):
    """The codebook: one vector for each code."""

    config: VQGANConfig

    def setup(self) -> None:
        """Declares the codebook; initially uniform in ±1/codes, as in the original."""
        bound = 1 / self.config.n_embed
        uniform = partial(jax.random.uniform, minval=-bound, maxval=bound)
        self.embedding = nn.Embed(self.config.n_embed, self.config.embed_dim, embedding_init=uniform)

    def nearest(self, z: Float[Array, "*positions embed_dim"]) -> Int[Array, "*positions"]:
        """Returns the code nearest to each vector: argmin of |e|² - 2 z·e, since |z|² is the same for all codes."""
        # In float32 for half weights too: the sums of squares would otherwise be rounded, and other codes be nearest.
        codebook = self.embedding.embedding.astype(jnp.float32)
        products = jnp.einsum("...d,kd->...k", z, codebook, precision=jax.lax.Precision.HIGHEST)
        return jnp.argmin(jnp.square(codebook).sum(-1) - 2 * products, axis=-1)

    def __call__(self, codes: Int[Array, "*positions"]) -> Float[Array, "*positions embed_dim"]:
        """Returns the vectors of codes."""
        return self.embedding(codes)


class VQGANModule(Block):
    """The whole network."""

    config: VQGANConfig

    def setup(self) -> None:
        """Declares the parts."""
        self.encoder = Encoder(self.dtype, self.config.encoder_levels, self.config.z_channels)
        self.decoder = Decoder(self.dtype, self.config.decoder_levels)
        self.quantize = Codebook(self.config)
        one_by_one = partial(nn.Conv, kernel_size=(1, 1), dtype=self.dtype, precision=precision(self.dtype))
        self.quant_conv = one_by_one(self.config.embed_dim)
        self.post_quant_conv = one_by_one(self.config.z_channels)

    def vectors(
        self, pixels: Float[Array, "batch height width 3"]
    ) -> Float[Array, "batch rows columns embed_dim"]:
        """Returns the vectors before they are quantized, in float32."""
        reduced = average_squares(pixels, self.config.reduction)
        return self.quant_conv(self.encoder(reduced)).astype(jnp.float32)

    def pixels(
        self, vectors: Float[Array, "batch rows columns embed_dim"]
    ) -> Float[Array, "batch height width 3"]:
        """Returns the picture of quantized vectors, not yet clipped."""
        return self.decoder(self.post_quant_conv(vectors)).astype(jnp.float32)

    def nearest(
        self, vectors: Float[Array, "batch rows columns embed_dim"]
    ) -> Int[Array, "batch rows columns"]:
        """Returns the code nearest to each vector."""
        return self.quantize.nearest(vectors)

    def encode(self, pixels: Float[Array, "batch height width 3"]) -> Int[Array, "batch tokens"]:
        """Returns the codes of a picture, row by row."""
        return self.nearest(self.vectors(pixels)).reshape(pixels.shape[0], -1)

    def decode(self, codes: Int[Array, "batch rows columns"]) -> Float[Array, "batch height width 3"]:
        """Returns the picture of codes, not yet clipped."""
        return self.pixels(self.quantize(codes))

    def __call__(self, pixels: Float[Array, "batch height width 3"]) -> Float[Array, "batch height width 3"]:
        """Returns the picture, encoded to codes and decoded again."""
        vectors = self.vectors(pixels)
        return self.pixels(self.quantize(self.quantize.nearest(vectors)))


@partial(jax.jit, static_argnums=0)
def initialize(config: VQGANConfig, key: Array) -> dict[str, Any]:
    """Returns random parameters for an untrained VQGAN."""
    pixels = jnp.zeros((1, config.resolution, config.resolution, 3))
    return VQGANModule(jnp.float32, config).init(key, pixels)["params"]


@kept_shapes
def parameter_shapes(config: VQGANConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter by its name in the checkpoint."""
    return shapes(jax.eval_shape(partial(initialize, config), jax.random.key(0)))


def load_codebook(folder: Path) -> Float[np.ndarray, "codes embed_dim"]:
    """Loads the codebook of a VQGAN's folder, in float32, and no other weights; raises `ModelError`."""
    expected = parameter_shapes(VQGANConfig.load(folder))
    (codebook,) = load_parameters(
        folder, expected, VQGAN_LAYOUT, select=lambda name: name == CODEBOOK
    ).values()
    return codebook.astype(np.float32)


# Left to itself, the compiler for TPUs moves parts of each picture into the batch before a convolution, and copies
# everything around it: a picture takes four times as many cycles (`docs/performance.md`).
_TPU_OPTIONS = {
    "xla_tpu_run_space_to_batch": False,
    "xla_tpu_run_space_to_batch_on_new_platforms": False,
}


@program(static_argnums=(0,), static_argnames=("dtype",), tpu_options=_TPU_OPTIONS)
def encode(
    config: VQGANConfig, params: Parameters, pixels: Float[Array, "batch height width 3"], *, dtype: DTypeLike
) -> Int[Array, "batch tokens"]:
    """Returns the codes of pictures in [0, 1], row by row."""
    return apply(VQGANModule(dtype, config), params, pixels, method=VQGANModule.encode)


@program(static_argnums=(0,), static_argnames=("dtype",), tpu_options=_TPU_OPTIONS)
def decode(
    config: VQGANConfig, params: Parameters, codes: Int[Array, "batch rows columns"], *, dtype: DTypeLike
) -> Float[Array, "batch height width 3"]:
    """Returns the pictures of codes, not yet clipped to [0, 1]."""
    return apply(VQGANModule(dtype, config), params, codes, method=VQGANModule.decode)


@dataclass(frozen=True)
class VQGAN:
    """A VQGAN: its configuration and its parameters."""

    config: VQGANConfig
    params: Parameters
    dtype: DTypeLike = jnp.float32
    """The type to decode in. Pictures are encoded in float32, so that their codes are the same on every machine."""

    @classmethod
    def load(cls, folder: Path | str, *, dtype: DTypeLike = jnp.float32) -> "VQGAN":
        """Loads a folder: `config.json` beside the weights in one of the formats of `docs/models.md`.

        Raises:
            ConfigError: the configuration has an option that is not supported.
            ModelError: the folder has no configuration or no weights.
            CheckpointError: a file is damaged or does not fit the configuration; names the tensor.
        """
        config = VQGANConfig.load(Path(folder))
        return cls(config, load_network(Path(folder), parameter_shapes(config), VQGAN_LAYOUT), dtype)

    def save(self, folder: Path | str) -> None:
        """Writes `config.json` and `model.safetensors` into a folder, which is created if necessary."""
        save_network(Path(folder), self.params, self.config.fields())

    @property
    def has_encoder(self) -> bool:
        """Whether pictures can be encoded; min-dalle's files contain only the decoder."""
        return "encoder" in self.params

    @property
    def codebook(self) -> Float[np.ndarray, "codes embed_dim"]:
        """The code vectors, in float32."""
        return np.asarray(flatten(self.params)[CODEBOOK], np.float32)

    def encode(self, pixels: Float[Array | np.ndarray, "batch height width 3"]) -> Int[Array, "batch tokens"]:
        """Returns the codes of pictures, row by row.

        Args:
            pixels: in [0, 1]; height and width multiples of `config.tile_size`.

        Raises:
            ModelError: the weights contain no encoder.
        """
        if not self.has_encoder:
            raise ModelError(
                "this VQGAN has no encoder: its weights contain only the decoder; use another VQGAN"
            )
        return encode(self.config, self.params, pixels, dtype=jnp.float32)

    def decode(self, codes: Int[Array | np.ndarray, "batch tokens"]) -> Float[Array, "batch height width 3"]:
        """Returns the square pictures of codes, not yet clipped to [0, 1].

        Raises:
            ValueError: the number of tokens is not a square number.
        """
        return decode(self.config, self.params, _squares(codes), dtype=self.dtype)

    def prepare_to_decode(self, codes: Int[Array | np.ndarray, "batch tokens"]) -> None:
        """Compiles the program for codes of this shape, without running it."""
        decode.prepare(self.config, self.params, _squares(codes), dtype=self.dtype)


def _squares(codes: Int[Array | np.ndarray, "batch tokens"]) -> Int[Array | np.ndarray, "batch rows columns"]:
    side = math.isqrt(codes.shape[1])
    if side * side != codes.shape[1]:
        raise ValueError(f"codes: {codes.shape[1]} tokens do not make a square picture")
    return codes.reshape(-1, side, side)
