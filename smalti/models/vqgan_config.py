"""Configuration of a VQGAN; separate from the network because it needs no JAX."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from smalti.errors import ConfigError
from smalti.models.configuration import check_options, positive_integer, read_config

GROUPS = 32
"""Number of groups in every group norm."""


# Every option of the original configuration that changes the graph, with the value of the published model.
PUBLISHED: dict[str, Any] = {
    "double_z": False,
    "give_pre_end": False,
    "in_channels": 3,
    "out_ch": 3,
    "resamp_with_conv": True,
}


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Sizes of an encoder or a decoder, and of the pictures that it reads or draws."""

    ch: int
    ch_mult: tuple[int, ...]
    """Channels of each level as multiples of `ch`; each level has half the sides of the one before."""
    num_res_blocks: int
    """Residual blocks of each level; a decoder has one more."""
    attn_resolutions: tuple[int, ...]
    """Sides, in positions, of the levels with attention."""
    patch_size: int
    """Width in pixels of the square that the network sees as one pixel; an addition for small models, which would
    otherwise spend most of their work at full resolution. 1 in the published models."""
    resolution: int
    """Side of the pictures in pixels."""

    @property
    def tile_size(self) -> int:
        """Width in pixels of the tile that one token stands for."""
        return int(self.patch_size * 2 ** (len(self.ch_mult) - 1))

    def has_attention(self, level: int) -> bool:
        """Returns whether attention follows the blocks of a level; level 0 has the highest resolution."""
        return self.resolution // self.patch_size // 2**level in self.attn_resolutions

    def channels(self, level: int) -> int:
        """Returns the number of channels of a level."""
        return self.ch * self.ch_mult[level]


@dataclass(frozen=True)
class DecoderSizes:
    """Sizes of a decoder that is not the mirror of the encoder, named as in the table `decoder` of `config.json`."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...] = ()
    patch_size: int = 1


@dataclass(frozen=True)
class VQGANConfig:
    """Sizes of a VQGAN, named as in `config.json`. The fields of `Levels` are the encoder's, and the decoder's too."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    resolution: int = 256
    """Side of the pictures, those that are encoded and those that are decoded."""
    z_channels: int = 256
    embed_dim: int = 256
    n_embed: int = 1024
    patch_size: int = 1
    reduction: int = 1
    """Width in pixels of the square whose mean the encoder sees as one pixel, so that a decoder can draw larger
    pictures than its encoder reads. 1 in the published models."""
    decoder: DecoderSizes | None = None
    """Sizes of the decoder; None for those of the encoder, as in the published models."""

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "VQGANConfig":
        """Makes the configuration from the fields of `config.json`, the original's or ours.

        Missing fields take the defaults of the original library.

        Raises:
            ConfigError: an option is not supported, or a size is invalid.
        """
        check_options("VQGAN", fields, PUBLISHED)
        numbers = (
            "ch", "num_res_blocks", "resolution", "z_channels", "embed_dim", "n_embed", "patch_size", "reduction"
        )  # fmt: skip
        config = cls(
            ch_mult=_sizes(fields, "ch_mult", cls.ch_mult),
            attn_resolutions=_sizes(fields, "attn_resolutions", cls.attn_resolutions),
            decoder=_decoder_sizes(fields.get("decoder")),
            **{name: positive_integer(fields, name, getattr(cls, name)) for name in numbers},
        )
        _check_groups(config.encoder_levels, "")
        _check_groups(config.decoder_levels, "decoder.")
        if config.resolution % config.tile_size:
            raise ConfigError(f"resolution: {config.resolution} must be a multiple of {config.tile_size}")
        if config.decoder_levels.tile_size != config.tile_size:
            raise ConfigError(
                f"decoder: draws tiles of {config.decoder_levels.tile_size} pixels, but a token of the encoder stands "
                f"for {config.tile_size}; change ch_mult or patch_size of one of them, or reduction"
            )
        return config

    @classmethod
    def load(cls, folder: Path) -> "VQGANConfig":
        """Reads the `config.json` of a folder; raises `ModelError` or `ConfigError`."""
        return cls.from_fields(read_config(folder))

    def fields(self) -> dict[str, Any]:
        """Returns the fields of `config.json`, including the fixed options of the published graph.

        Options that a model does not use are left out, so that its file is the same as before there were such options.
        """
        sizes = {"model_type": "vqgan", **PUBLISHED, **asdict(self)}
        unused = [name for name, default in (("reduction", 1), ("decoder", None)) if sizes[name] == default]
        return {name: value for name, value in sizes.items() if name not in unused}

    @property
    def encoder_levels(self) -> Levels:
        """Sizes of the encoder, and of the pictures that it reads once they are reduced."""
        return _levels(self, self.resolution // self.reduction)

    @property
    def decoder_levels(self) -> Levels:
        """Sizes of the decoder, and of the pictures that it draws."""
        return _levels(self.decoder or self, self.resolution)

    @property
    def tile_size(self) -> int:
        """Width in pixels of the tile that one token stands for."""
        return self.reduction * self.encoder_levels.tile_size

    @property
    def tokens(self) -> int:
        """Tokens per picture at the model's resolution."""
        return int((self.resolution // self.tile_size) ** 2)


def _levels(sizes: VQGANConfig | DecoderSizes, resolution: int) -> Levels:
    return Levels(
        ch=sizes.ch,
        ch_mult=sizes.ch_mult,
        num_res_blocks=sizes.num_res_blocks,
        attn_resolutions=sizes.attn_resolutions,
        patch_size=sizes.patch_size,
        resolution=resolution,
    )


def _check_groups(levels: Levels, prefix: str) -> None:
    """Raises `ConfigError` if a group norm cannot divide the channels of a level."""
    for factor in levels.ch_mult:
        if levels.ch * factor % GROUPS:
            raise ConfigError(
                f"{prefix}ch: {levels.ch} times {factor} of ch_mult must be a multiple of {GROUPS}, "
                "the number of groups of every group norm"
            )


def _decoder_sizes(value: Any) -> DecoderSizes | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ConfigError(f"decoder: {json.dumps(value)} must be an object with the sizes of the decoder")
    known = [field.name for field in fields(DecoderSizes)]
    for name in value:
        if name not in known:
            raise ConfigError(f"decoder.{name}: is not implemented; a decoder has {', '.join(known)}")
    try:
        return DecoderSizes(
            ch=positive_integer(value, "ch"),
            ch_mult=_sizes(value, "ch_mult", None),
            num_res_blocks=positive_integer(value, "num_res_blocks"),
            attn_resolutions=_sizes(value, "attn_resolutions", ()),
            patch_size=positive_integer(value, "patch_size", 1),
        )
    except ConfigError as error:
        raise ConfigError(f"decoder.{error}") from None


def _sizes(fields: Mapping[str, Any], name: str, default: tuple[int, ...] | None) -> tuple[int, ...]:
    value = fields.get(name, default)
    if value is None:
        raise ConfigError(f"{name}: must be a list of positive integers; it is missing")
    if not isinstance(value, list | tuple) or not all(isinstance(size, int) and size > 0 for size in value):
        raise ConfigError(f"{name}: {json.dumps(value)} must be a list of positive integers")
    if name == "ch_mult" and not value:
        raise ConfigError(f"{name}: must not be empty; give one factor for each resolution")
    return tuple(value)
