"""Configuration of a VQGAN; separate from the network because it needs no JAX."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class VQGANConfig:
    """Sizes of a VQGAN, named as in `config.json`."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    resolution: int = 256
    z_channels: int = 256
    embed_dim: int = 256
    n_embed: int = 1024
    patch_size: int = 1
    """Width in pixels of the square that the network sees as one pixel; an addition for small models, which would
    otherwise spend most of their work at full resolution. 1 in the published models."""

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "VQGANConfig":
        """Makes the configuration from the fields of `config.json`, the original's or ours.

        Missing fields take the defaults of the original library.

        Raises:
            ConfigError: an option is not supported, or a size is invalid.
        """
        check_options("VQGAN", fields, PUBLISHED)
        numbers = ("ch", "num_res_blocks", "resolution", "z_channels", "embed_dim", "n_embed", "patch_size")
        config = cls(
            ch_mult=_sizes(fields, "ch_mult", cls.ch_mult),
            attn_resolutions=_sizes(fields, "attn_resolutions", cls.attn_resolutions),
            **{name: positive_integer(fields, name, getattr(cls, name)) for name in numbers},
        )
        for factor in config.ch_mult:
            if config.ch * factor % GROUPS:
                raise ConfigError(
                    f"ch: {config.ch} times {factor} of ch_mult must be a multiple of {GROUPS}, "
                    "the number of groups of every group norm"
                )
        if config.resolution % config.tile_size:
            raise ConfigError(f"resolution: {config.resolution} must be a multiple of {config.tile_size}")
        return config

    @classmethod
    def load(cls, folder: Path) -> "VQGANConfig":
        """Reads the `config.json` of a folder; raises `ModelError` or `ConfigError`."""
        return cls.from_fields(read_config(folder))

    def fields(self) -> dict[str, Any]:
        """Returns the fields of `config.json`, including the fixed options of the published graph."""
        return {"model_type": "vqgan", **PUBLISHED, **vars(self)}

    @property
    def tile_size(self) -> int:
        """Width in pixels of the tile that one token stands for."""
        return int(self.patch_size * 2 ** (len(self.ch_mult) - 1))

    @property
    def tokens(self) -> int:
        """Tokens per picture at the model's resolution."""
        return int((self.resolution // self.tile_size) ** 2)

    def has_attention(self, level: int) -> bool:
        """Returns whether attention follows the blocks of a level; level 0 has the highest resolution."""
        return self.resolution // self.patch_size // 2**level in self.attn_resolutions

    def channels(self, level: int) -> int:
        """Returns the number of channels of a level."""
        return self.ch * self.ch_mult[level]


def _sizes(fields: Mapping[str, Any], name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    value = fields.get(name, default)
    if not isinstance(value, list | tuple) or not all(isinstance(size, int) and size > 0 for size in value):
        raise ConfigError(f"{name}: {json.dumps(value)} must be a list of positive integers")
    if name == "ch_mult" and not value:
        raise ConfigError(f"{name}: must not be empty; give one factor for each resolution")
    return tuple(value)
