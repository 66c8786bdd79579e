"""The parts of a model: whether each part's files fit its configuration, and whether the parts fit each other.

Weights are compared with configurations by the headers of their files; no weight is read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from smalti.checkpoints.loading import (
    DALLEBART_LAYOUT,
    REFINER_LAYOUT,
    VQGAN_LAYOUT,
    Checkpoint,
    Layout,
    open_checkpoint,
)
from smalti.checkpoints.names import Shape
from smalti.checkpoints.safetensors import index_safetensors
from smalti.errors import CheckpointError, ConfigError, ModelError
from smalti.models import bart, refiner, vqgan
from smalti.models.bart_config import DalleBartConfig
from smalti.models.configuration import read_config
from smalti.models.refiner_config import RefinerConfig
from smalti.models.vqgan_config import VQGANConfig
from smalti.registry.folder import ModelFolder
from smalti.registry.published import MEGA, MINI, VQGAN_F16_16384
from smalti.registry.spec import find_mismatches, find_refiner_mismatches
from smalti.text.tokenizer import TextTokenizer
from smalti.text.vocabulary import load_words

CLIP_CONFIG_FILE = "open_clip_config.json"
CONFIG_FILE = "config.json"

Config = TypeVar("Config", DalleBartConfig, VQGANConfig, RefinerConfig)


@dataclass(frozen=True)
class OpenedNetwork(Generic[Config]):
    """A network's configuration, and the weights that fit it, which are not read yet."""

    config: Config
    checkpoint: Checkpoint


@dataclass(frozen=True, kw_only=True)
class Network(Generic[Config]):
    """The functions and formats for opening one kind of network."""

    parse: Callable[[Mapping[str, Any]], Config]
    """Makes the configuration from the fields of `config.json`."""
    shapes: Callable[[Config], Mapping[str, Shape]]
    """Returns the shape of every parameter."""
    layout: Layout
    """File formats of the weights."""
    published: tuple[Mapping[str, Any], ...]
    """Configurations of the published models."""

    def open(self, path: Path, fields: Mapping[str, Any]) -> OpenedNetwork[Config]:
        """Opens weights that have the given configuration.

        Args:
            path: a folder of weights, or a file.
            fields: the fields of `config.json`.

        Raises:
            ModelError: there are no weights, or they do not fit.
        """
        config = self.parse(fields)
        return OpenedNetwork(config, open_checkpoint(path, self.shapes(config), self.layout))

    def detect(self, path: Path) -> OpenedNetwork[Config]:
        """Opens weights with the first configuration that fits: `config.json` beside them, or a published one.

        Args:
            path: a folder of weights, or a file.

        Raises:
            ModelError: there are no weights, or no configuration fits; says why the first does not.
        """
        folder = path if path.is_dir() else path.parent
        beside: list[Mapping[str, Any]] = [read_config(folder)] if (folder / CONFIG_FILE).is_file() else []
        problems: list[str] = []
        for fields in (*beside, *self.published):
            try:
                return self.open(path, fields)
            except ConfigError as error:
                problems.append(f"{folder / CONFIG_FILE}: {error}")
            except CheckpointError as error:
                problems.append(str(error))
        if beside:
            raise CheckpointError(problems[0])
        raise CheckpointError(
            f"{path}: there is no {CONFIG_FILE} beside it, and no published model fits ({problems[0]})"
        )


# The shapes come from tracing the network, which takes a second for a published one.
BART: Network[DalleBartConfig] = Network(
    parse=DalleBartConfig.from_fields,
    shapes=cache(bart.parameter_shapes),
    layout=DALLEBART_LAYOUT,
    published=(MINI, MEGA),
)
VQGAN: Network[VQGANConfig] = Network(
    parse=VQGANConfig.from_fields,
    shapes=cache(vqgan.parameter_shapes),
    layout=VQGAN_LAYOUT,
    published=(VQGAN_F16_16384,),
)
REFINER: Network[RefinerConfig] = Network(
    parse=RefinerConfig.from_fields,
    shapes=cache(refiner.parameter_shapes),
    layout=REFINER_LAYOUT,
    published=(),
)


def find_part_problems(folder: ModelFolder) -> list[str]:
    """Returns why the parts of a model cannot be used, one line each; empty if they can."""
    transformer, problems = _open(BART, folder.bart_folder)
    codebook, more = _open(VQGAN, folder.vqgan_folder)
    problems += more
    if transformer and codebook:
        problems += find_mismatches(folder.path, transformer, codebook)
    if folder.refiner_folder is not None:
        second, more = _open(REFINER, folder.refiner_folder)
        problems += more
        if second and transformer and codebook:
            problems += find_refiner_mismatches(folder.path, second, transformer, codebook)
    if transformer:
        problems += find_tokenizer_problems(folder.text_folder, transformer)
    if isinstance(folder.clip_source, Path):
        problems += find_clip_problems(folder.clip_source)
    return problems + _find_words_problems(folder)


def _open(network: Network[Config], folder: Path) -> tuple[Config | None, list[str]]:
    try:
        return network.open(folder, read_config(folder)).config, []
    except ConfigError as error:
        return None, [f"{folder / CONFIG_FILE}: {error}"]
    except ModelError as error:
        return None, [str(error)]


def find_tokenizer_problems(folder: Path, transformer: DalleBartConfig) -> list[str]:
    """Returns why a text tokenizer cannot be used with a transformer, one line each; empty if it can."""
    try:
        tokenizer = TextTokenizer.load(
            folder, max_text_length=transformer.max_text_length, normalize=transformer.normalize_text
        )
    except ModelError as error:
        return [str(error)]
    if tokenizer.vocabulary_size > transformer.encoder_vocab_size:
        return [
            f"{folder}: the text tokenizer has {tokenizer.vocabulary_size} ids, but the transformer embeds "
            f"{transformer.encoder_vocab_size}; they are parts of different models"
        ]
    return []


def find_clip_problems(folder: Path) -> list[str]:
    """Returns why open_clip cannot load a folder, as far as its headers tell; empty if it can."""
    if not (folder / CLIP_CONFIG_FILE).is_file():
        return [f"{folder}: not a CLIP folder of open_clip: it has no {CLIP_CONFIG_FILE}"]
    try:
        for weights in folder.glob("*.safetensors"):
            index_safetensors(weights)
    except ModelError as error:
        return [str(error)]
    return []


def _find_words_problems(folder: ModelFolder) -> list[str]:
    try:
        load_words(folder.words_file)
    except ModelError as error:
        return [str(error)]
    return []
