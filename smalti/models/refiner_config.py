"""Configuration of a refiner; separate from the network because it needs no JAX."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smalti.errors import ConfigError
from smalti.models.configuration import positive_integer, read_config
from smalti.parameters import UPSCALES

GROUPS = 16
"""Number of groups in every group norm."""


@dataclass(frozen=True)
class RefinerConfig:
    """Sizes of a refiner, named as in `config.json`."""

    code_dim: int
    """Width of the VQGAN's code vectors, its `embed_dim`."""
    text_dim: int
    """Width of the text encoder's hidden states, its `d_model`."""
    channels: tuple[int, ...] = (48, 96, 160)
    """Channels of each level, the highest resolution first."""
    num_res_blocks: int = 2
    """Residual blocks of each level, on the way down; there is one more on the way up."""
    attention_heads: int = 4
    """Heads of the self-attention and of the cross-attention, which are at the lowest level."""
    patch_size: int = 4
    """Width in pixels of the square that the network sees as one pixel."""
    upscale: int = 2
    """Factor by which the pictures of the training were enlarged."""
    noise: float = 0.3
    """Standard deviation of the noise on the enlarged picture, of pixels in [0, 1]."""

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "RefinerConfig":
        """Makes the configuration from the fields of `config.json`.

        Raises:
            ConfigError: a size is missing or invalid.
        """
        channels = fields.get("channels", cls.channels)
        if (
            not isinstance(channels, list | tuple)
            or not channels
            or not all(isinstance(size, int) and size > 0 and size % GROUPS == 0 for size in channels)
        ):
            raise ConfigError(
                f"channels: {json.dumps(channels)} must be a list of multiples of {GROUPS}, one for each level"
            )
        numbers = ("num_res_blocks", "attention_heads", "patch_size", "upscale")
        config = cls(
            code_dim=positive_integer(fields, "code_dim"),
            text_dim=positive_integer(fields, "text_dim"),
            channels=tuple(channels),
            noise=float(fields.get("noise", cls.noise)),
            **{name: positive_integer(fields, name, getattr(cls, name)) for name in numbers},
        )
        if config.channels[-1] % (4 * config.attention_heads):
            raise ConfigError(
                f"attention_heads: 4 times {config.attention_heads} must divide the channels of the lowest level, "
                f"{config.channels[-1]}"
            )
        if config.upscale not in UPSCALES:
            raise ConfigError(f"upscale: {config.upscale} must be 1, 2 or 4")
        if not 0 <= config.noise <= 10:
            raise ConfigError(f"noise: {config.noise} must be from 0 to 10")
        return config

    @classmethod
    def load(cls, folder: Path) -> "RefinerConfig":
        """Reads the `config.json` of a folder; raises `ModelError` or `ConfigError`."""
        return cls.from_fields(read_config(folder))

    def fields(self) -> dict[str, Any]:
        """Returns the fields of `config.json`."""
        return {"model_type": "refiner", **vars(self)}

    @property
    def tile_size(self) -> int:
        """Width in pixels of one position of the lowest level; widths of pictures must be multiples of it."""
        return int(self.patch_size * 2 ** (len(self.channels) - 1))
