"""The sizes of a VQGAN; apart from the network, so that who only wants to know them needs no JAX."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smalti.errors import ConfigError
from smalti.models.configuration import read_config, refuse_other_options, whole_number

GROUPS = 32
"""Of every group norm."""


# Every option of the original's configuration that changes the graph, and the value the published model has.
PUBLISHED: dict[str, Any] = {
    "double_z": False,
    "give_pre_end": False,
    "in_channels": 3,
    "out_ch": 3,
    "resamp_with_conv": True,
}


@dataclass(frozen=True)
class VQGANConfig:
    """The sizes of a VQGAN, by their names in `config.json`."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    resolution: int = 256
    z_channels: int = 256
    embed_dim: int = 256
    n_embed: int = 1024
    patch_size: int = 1
    """Ours, for small models: the width in pixels of the square that the network sees as one place. The published
    models see every pixel, 1; most of a small model's work would be spent at full resolution."""

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "VQGANConfig":
        """Makes the configuration from the fields of an original or own `config.json`.

        A field that is absent takes the original library's default.

        Raises:
            ConfigError: an option asks for what the published model does not have, or a size is impossible.
        """
        refuse_other_options("VQGAN", fields, PUBLISHED)
        numbers = ("ch", "num_res_blocks", "resolution", "z_channels", "embed_dim", "n_embed", "patch_size")
        config = cls(
            ch_mult=_sizes(fields, "ch_mult", cls.ch_mult),
            attn_resolutions=_sizes(fields, "attn_resolutions", cls.attn_resolutions),
            **{name: whole_number(fields, name, getattr(cls, name)) for name in numbers},
        )
        for factor in config.ch_mult:
            if config.ch * factor % GROUPS:
                raise ConfigError(
                    f"ch: {config.ch} times {factor} of ch_mult is not a multiple of {GROUPS}, "
                    "the number of groups of every group norm"
                )
        if config.resolution % config.tile_size:
            raise ConfigError(f"resolution: {config.resolution} is not a multiple of {config.tile_size}")
        return config

    @classmethod
    def load(cls, folder: Path) -> "VQGANConfig":
        """Reads `config.json` of a folder; raises `ModelError` or `ConfigError`."""
        return cls.from_fields(read_config(folder))

    def fields(self) -> dict[str, Any]:
        """Returns what `config.json` says, the options of the published graph included."""
        return {"model_type": "vqgan", **PUBLISHED, **vars(self)}

    @property
    def tile_size(self) -> int:
        """The width in pixels of the picture's part that one token stands for."""
        return int(self.patch_size * 2 ** (len(self.ch_mult) - 1))

    @property
    def tokens(self) -> int:
        """The number of tokens of a picture of the model's own resolution."""
        return int((self.resolution // self.tile_size) ** 2)

    def has_attention(self, level: int) -> bool:
        """Tells whether the blocks of a level are followed by attention; level 0 is the highest resolution."""
        return self.resolution // self.patch_size // 2**level in self.attn_resolutions

    def channels(self, level: int) -> int:
        """The channels of a level."""
        return self.ch * self.ch_mult[level]


def _sizes(fields: Mapping[str, Any], name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    value = fields.get(name, default)
    if not isinstance(value, list | tuple) or not all(isinstance(size, int) and size > 0 for size in value):
        raise ConfigError(f"{name}: {json.dumps(value)} is not a list of whole numbers above zero")
    if name == "ch_mult" and not value:
        raise ConfigError(f"{name}: it is empty; one factor for each resolution is expected")
    return tuple(value)
