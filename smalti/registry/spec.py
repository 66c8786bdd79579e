"""The sizes of a model's networks: what its pictures and encodings look like. Needs no JAX."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from smalti.checkpoints.loading import VQGAN_LAYOUT, has_optional_part
from smalti.errors import ConfigError, ModelError
from smalti.models.bart_config import DalleBartConfig
from smalti.models.refiner_config import RefinerConfig
from smalti.models.vqgan_config import VQGANConfig
from smalti.registry.folder import ModelFolder


@dataclass(frozen=True)
class ModelSpec:
    """A model folder with the configurations of its networks, which match."""

    folder: ModelFolder
    transformer: DalleBartConfig
    vqgan: VQGANConfig
    refiner: RefinerConfig | None = None
    """None for a model without a refiner."""

    @classmethod
    def load(cls, folder: ModelFolder) -> Self:
        """Reads the configurations of a model.

        Raises:
            ModelError: a configuration is invalid, or two do not match.
        """
        transformer, vqgan = DalleBartConfig.load(folder.bart_folder), VQGANConfig.load(folder.vqgan_folder)
        for problem in find_mismatches(folder.path, transformer, vqgan):
            raise ModelError(problem)
        if math.isqrt(transformer.image_length) ** 2 != transformer.image_length:
            raise ConfigError(f"image_length: {transformer.image_length} tokens do not make a square picture")
        refiner = RefinerConfig.load(folder.refiner_folder) if folder.refiner_folder else None
        for problem in find_refiner_mismatches(folder.path, refiner, transformer, vqgan) if refiner else ():
            raise ModelError(problem)
        return cls(folder, transformer, vqgan, refiner)

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

    @property
    def refiner_revision(self) -> str | None:
        """Identifies the refiner's files; None if the model has no refiner."""
        return self.folder.refiner_revision

    @property
    def trained_upscale(self) -> int | None:
        """Factor by which the refiner was trained to enlarge pictures; None if the model has no refiner."""
        return self.refiner.upscale if self.refiner else None

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


def find_refiner_mismatches(
    path: Path, refiner: RefinerConfig, transformer: DalleBartConfig, vqgan: VQGANConfig
) -> list[str]:
    """Returns why a refiner cannot work with the other networks, one line each; empty if it can.

    Args:
        path: the folder that the lines name.
        refiner: configuration of the refiner.
        transformer: configuration of the transformer.
        vqgan: configuration of the VQGAN.
    """
    problems = []
    for what, expected, found in (
        ("code vectors", refiner.code_dim, vqgan.embed_dim),
        ("encodings", refiner.text_dim, transformer.d_model),
    ):
        if expected != found:
            problems.append(
                f"{path}: the refiner reads {what} of width {expected}, but the model's have width {found}; "
                "they are parts of different models"
            )
    if vqgan.resolution % refiner.tile_size:
        problems.append(
            f"{path}: the refiner reads pictures whose width is a multiple of {refiner.tile_size}, but the model's "
            f"have width {vqgan.resolution}; they are parts of different models"
        )
    return problems
