"""The folder of a CLIP, in open_clip's format: `open_clip_config.json` beside weights, and perhaps merges."""

import gzip
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from smalti.errors import InvalidInputError, ModelError
from smalti.files import atomic_path, write_atomically
from smalti.foreign_text import parse_json

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
MERGES_FILE = "merges.txt.gz"
"""Merges of a tokenizer with fewer tokens than open_clip's 49,408; named `bpe_path` in the configuration."""
EXAMPLE = "ViT-B-32:openai"

# Files that open_clip looks for in a folder. It reads the last two with `weights_only`, so they cannot run code.
_WEIGHTS_PATTERNS = ("*.safetensors", "*.bin", "*.pth")
_TOWERS = ("text_cfg", "vision_cfg")


@dataclass(frozen=True, kw_only=True)
class ClipParts:
    """What a CLIP needs to score pictures."""

    model: torch.nn.Module
    """The network, with `encode_image`, `encode_text` and `logit_scale`."""
    prepare: Callable[[Image.Image], torch.Tensor]
    """Prepares a picture for the network."""
    tokenizer: Callable[[Sequence[str]], torch.Tensor]
    """Returns the token ids of prompts."""
    write_tokenizer: Callable[[Path], None]
    """Writes the tokenizer's files into a folder, if it has any of its own."""
    config: Mapping[str, Any]
    """Content of `open_clip_config.json`."""


def write_folder(folder: Path, model: torch.nn.Module, config: Mapping[str, Any]) -> None:
    """Writes a model in open_clip's folder format: `open_clip_config.json` and `open_clip_model.safetensors`.

    Args:
        folder: the folder, which is created if necessary.
        model: a model of open_clip.
        config: `model_cfg` and `preprocess_cfg` of open_clip.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    # Both are written before either is renamed, so that new weights never end up beside an old configuration.
    with atomic_path(folder / CONFIG_FILE) as config_path, atomic_path(folder / WEIGHTS_FILE) as weights_path:
        save_file(weights, weights_path)
        config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_merges(path: Path, merges: Iterable[tuple[str, ...]]) -> None:
    """Writes the merges of open_clip's tokenizer, in order, as a file that it reads; reproducible byte for byte."""
    # The gzip header has neither name nor time. There is no empty line, since the tokenizer would read it as a merge.
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    write_atomically(path, gzip.compress("\n".join(lines).encode(), mtime=0))


def load_config(folder: Path) -> dict[str, Any]:
    """Loads the configuration of a folder that has weights; raises `ModelError`."""
    if not folder.is_dir():
        raise ModelError(
            f"CLIP {folder}: no such folder; give a folder, or a name with pretrained tag such as {EXAMPLE}"
        )
    path = folder / CONFIG_FILE
    try:
        config = parse_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise ModelError(f"CLIP {folder}: has no {CONFIG_FILE}; give a folder that open_clip wrote") from None
    except (OSError, InvalidInputError) as error:
        raise ModelError(
            f"CLIP {path}: cannot be read as JSON ({first_sentence(error)}); copy it again"
        ) from None
    model = config.get("model_cfg") if isinstance(config, dict) else None
    if not (isinstance(model, dict) and all(isinstance(model.get(tower), dict) for tower in _TOWERS)):
        raise ModelError(f"CLIP {path}: has no model_cfg with {' and '.join(_TOWERS)}; copy it again")
    # Without weights, open_clip would only warn and use random ones.
    if not any(True for pattern in _WEIGHTS_PATTERNS for _ in folder.glob(pattern)):
        raise ModelError(f"CLIP {folder}: has no weights; add {WEIGHTS_FILE}")
    return config


def merges_file(text: Mapping[str, Any]) -> str | None:
    """Returns the file name of the merges in the configuration of a text tower."""
    options = text.get("tokenizer_kwargs")
    return options.get("bpe_path") if isinstance(options, dict) else None


def first_sentence(error: Exception) -> str:
    """Returns the first sentence of an error's text, as one short line."""
    return " ".join(str(error).split()).split(". ")[0][:200] or type(error).__name__
