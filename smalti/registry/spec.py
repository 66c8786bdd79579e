"""The sizes of a model's two networks together: what its pictures and encodings are like. Needs no JAX."""

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
    """The sizes of a model whose networks belong together."""

    folder: ModelFolder
    transformer: DalleBartConfig
    vqgan: VQGANConfig

    @classmethod
    def load(cls, folder: ModelFolder) -> Self:
        """Reads the two configurations of a model.

        Raises:
            ModelError: one cannot be used, or they do not belong together.
        """
        transformer, vqgan = DalleBartConfig.load(folder.bart_folder), VQGANConfig.load(folder.vqgan_folder)
        for problem in pair_problems(folder.path, transformer, vqgan):
            raise ModelError(problem)
        if math.isqrt(transformer.image_length) ** 2 != transformer.image_length:
            raise ConfigError(f"image_length: {transformer.image_length} tokens do not make a square picture")
        return cls(folder, transformer, vqgan)

    @property
    def side(self) -> int:
        """The rows of tiles of a picture, and the tiles of a row."""
        return math.isqrt(self.transformer.image_length)

    @property
    def tokens(self) -> int:
        """The image tokens of a picture."""
        return self.transformer.image_length

    @property
    def codebook_size(self) -> int:
        """Image tokens are below it."""
        return self.transformer.decoder_start_token_id

    @property
    def resolution(self) -> int:
        """The width of a picture, and its height, in pixels."""
        return self.vqgan.resolution

    @cached_property
    def encodes_images(self) -> bool:
        """Whether pictures can be turned into tokens; raises `ModelError` when the weights cannot be read."""
        return has_optional_part(self.folder.vqgan_folder, VQGAN_LAYOUT)


def pair_problems(path: Path, transformer: DalleBartConfig, codebook: VQGANConfig) -> list[str]:
    """Returns why a transformer and a VQGAN do not belong together; nothing when they may."""
    problems = []
    if transformer.decoder_start_token_id > codebook.n_embed:
        problems.append(
            f"{path}: the transformer draws {transformer.decoder_start_token_id} different tokens, "
            f"the VQGAN's codebook has {codebook.n_embed}; they do not belong together"
        )
    if transformer.image_length != codebook.tokens:
        problems.append(
            f"{path}: the transformer draws {transformer.image_length} tokens a picture, "
            f"the VQGAN lays {codebook.tokens}; they do not belong together"
        )
    return problems
