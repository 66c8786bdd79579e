"""Whether the parts of a model fit: each file of weights its configuration, and the parts each other.

Weights are held against configurations by the headers of their files; no weight is read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from smalti.checkpoints.loading import DALLEBART_LAYOUT, VQGAN_LAYOUT, Checkpoint, Layout, open_checkpoint
from smalti.checkpoints.names import Shape
from smalti.checkpoints.safetensors import index_safetensors
from smalti.errors import CheckpointError, ConfigError, ModelError
from smalti.models import bart, vqgan
from smalti.models.bart import DalleBartConfig
from smalti.models.configuration import read_config
from smalti.models.vqgan import VQGANConfig
from smalti.registry.folder import ModelFolder
from smalti.registry.published import MEGA, MINI, VQGAN_F16_16384
from smalti.registry.spec import pair_problems as pair_problems
from smalti.text.tokenizer import TextTokenizer
from smalti.text.vocabulary import load_words

CLIP_CONFIG_FILE = "open_clip_config.json"
CONFIG_FILE = "config.json"

Config = TypeVar("Config", DalleBartConfig, VQGANConfig)


@dataclass(frozen=True)
class Fitted(Generic[Config]):
    """A network's weights, not yet read, and the configuration that they fit."""

    config: Config
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Network(Generic[Config]):
    """What there is to know of a network for finding its weights.

    Attributes:
        parse: makes its configuration of the fields of `config.json`.
        shapes: the shape of every parameter.
        layout: the formats of its weights.
        published: the configurations of the published models.
    """

    parse: Callable[[Mapping[str, Any]], Config]
    shapes: Callable[[Config], Mapping[str, Shape]]
    layout: Layout
    published: tuple[Mapping[str, Any], ...]

    def fit(self, place: Path, fields: Mapping[str, Any]) -> Fitted[Config]:
        """Opens the weights of a folder, or a file of weights, under a configuration.

        Raises:
            ModelError: there are no weights, or they do not fit.
        """
        config = self.parse(fields)
        return Fitted(config, open_checkpoint(place, self.shapes(config), self.layout))

    def find(self, place: Path) -> Fitted[Config]:
        """Opens the weights of a folder, or a file of weights, under the first configuration that they fit.

        It is that of `config.json` beside the weights, or that of a published model.

        Raises:
            ModelError: there are no weights, or they fit no configuration; says why not the first.
        """
        folder = place if place.is_dir() else place.parent
        beside: list[Mapping[str, Any]] = [read_config(folder)] if (folder / CONFIG_FILE).is_file() else []
        problems: list[str] = []
        for fields in (*beside, *self.published):
            try:
                return self.fit(place, fields)
            except ConfigError as error:
                problems.append(f"{folder / CONFIG_FILE}: {error}")
            except CheckpointError as error:
                problems.append(str(error))
        if beside:
            raise CheckpointError(problems[0])
        raise CheckpointError(
            f"{place}: no {CONFIG_FILE} is beside it, and no published model fits it ({problems[0]})"
        )


# The shapes come out of tracing the network, which takes a second for a published one.
BART: Network[DalleBartConfig] = Network(
    DalleBartConfig.from_fields, cache(bart.parameter_shapes), DALLEBART_LAYOUT, (MINI, MEGA)
)
VQGAN: Network[VQGANConfig] = Network(
    VQGANConfig.from_fields, cache(vqgan.parameter_shapes), VQGAN_LAYOUT, (VQGAN_F16_16384,)
)


def problems_of(folder: ModelFolder) -> list[str]:
    """Returns what does not fit in a model folder, one line each."""
    transformer, problems = _attempt(BART, folder.bart_folder)
    codebook, more = _attempt(VQGAN, folder.vqgan_folder)
    problems += more
    if transformer and codebook:
        problems += pair_problems(folder.path, transformer, codebook)
    if transformer:
        problems += text_problems(folder.text_folder, transformer)
    if isinstance(folder.clip_source, Path):
        problems += clip_problems(folder.clip_source)
    return problems + words_problems(folder)


def _attempt(network: Network[Config], folder: Path) -> tuple[Config | None, list[str]]:
    try:
        return network.fit(folder, read_config(folder)).config, []
    except ConfigError as error:
        return None, [f"{folder / CONFIG_FILE}: {error}"]
    except ModelError as error:
        return None, [str(error)]


def text_problems(folder: Path, transformer: bart.DalleBartConfig) -> list[str]:
    """Returns why a text tokenizer cannot be used with a transformer; nothing when it can."""
    try:
        tokenizer = TextTokenizer.load(
            folder, max_text_length=transformer.max_text_length, normalize=transformer.normalize_text
        )
    except ModelError as error:
        return [str(error)]
    if tokenizer.vocabulary_size > transformer.encoder_vocab_size:
        return [
            f"{folder}: the text tokenizer has {tokenizer.vocabulary_size} ids, "
            f"the transformer embeds {transformer.encoder_vocab_size}; they do not belong together"
        ]
    return []


def words_problems(folder: ModelFolder) -> list[str]:
    """Returns why the list of known words cannot be used; nothing when it can, or there is none."""
    try:
        load_words(folder.words_file)
    except ModelError as error:
        return [str(error)]
    return []


def clip_problems(folder: Path) -> list[str]:
    """Returns why a folder is none of open_clip's; nothing when it looks like one."""
    if not (folder / CLIP_CONFIG_FILE).is_file():
        return [f"{folder}: no {CLIP_CONFIG_FILE} in it; a folder of open_clip's has one"]
    try:
        for weights in folder.glob("*.safetensors"):
            index_safetensors(weights)
    except ModelError as error:
        return [str(error)]
    return []
