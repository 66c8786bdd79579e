"""The sizes of a model's two networks: what its pictures and encodings look like. Needs no JAX."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from smalti.checkpoints.loading import VQGAN_LAYOUT, has_optional_part
from smalti.errors import ConfigError, ModelError
from smalti.models.bart_config import DalleBartConfig
from smalti.models.vqgan_config import VQGANConfig
from smalti.registry.folder import ModelFolder


@dataclass(frozen=True)
class ModelSpec:
    """A model folder with the configurations of its two networks, which match."""

    folder: ModelFolder
    transformer: DalleBartConfig
    vqgan: VQGANConfig

    @classmethod
    def load(cls, folder: ModelFolder) -> Self:
        """Reads the two configurations of a model.

        Raises:
            ModelError: a configuration is invalid, or the two do not match.
        """
        transformer, vqgan = DalleBartConfig.load(folder.bart_folder), VQGANConfig.load(folder.vqgan_folder)
        for problem in find_mismatches(folder.path, transformer, vqgan):
            raise ModelError(problem)
        if math.isqrt(transformer.image_length) ** 2 != transformer.image_length:
            raise ConfigError(f"image_length: {transformer.image_length} tokens do not make a square picture")
        return cls(folder, transformer, vqgan)

    @property
    def side(self) -> int:
        """Tiles along each side of a picture."""
        return math.isqrt(self.transformer.image_length)

    @property
    def tokens(self) -> int:
        """Image tokens per picture."""
        return self.transformer.image_length

    @property
    def codebook_size(self) -> int:
        """Number of different image tokens; every token is less than this."""
        return self.transformer.decoder_start_token_id

    @property
    def resolution(self) -> int:
        """Width and height of a picture, in pixels."""
        return self.vqgan.resolution

    @cached_property
    def encodes_images(self) -> bool:
        """Whether the VQGAN can encode pictures; raises `ModelError` if its weights cannot be read."""
        return has_optional_part(self.folder.vqgan_folder, VQGAN_LAYOUT)


def find_mismatches(path: Path, transformer: DalleBartConfig, vqgan: VQGANConfig) -> list[str]:
    """Returns why a transformer and a VQGAN cannot work together, one line each; empty if they can.

    Args:
        path: the folder that the lines name.
        transformer: configuration of the transformer.
        vqgan: configuration of the VQGAN.
    """
    problems = []
    if transformer.decoder_start_token_id > vqgan.n_embed:
        problems.append(
            f"{path}: the transformer generates {transformer.decoder_start_token_id} different tokens, but the "
            f"VQGAN's codebook has {vqgan.n_embed}; they are parts of different models"
        )
    if transformer.image_length != vqgan.tokens:
        problems.append(
            f"{path}: the transformer generates {transformer.image_length} tokens per picture, but the VQGAN "
            f"decodes {vqgan.tokens}; they are parts of different models"
        )
    return problems
