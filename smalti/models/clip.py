"""CLIP, through open_clip: how well a picture fits a prompt (Radford et al. 2021, https://arxiv.org/abs/2103.00020)."""

import difflib
import gzip
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import save_file

from smalti.errors import ModelError
from smalti.files import atomic_path, write_atomically
from smalti.models.torchvision_operators import declare_missing_operators

declare_missing_operators()  # Before open_clip, which imports torchvision.

import open_clip  # noqa: E402
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer  # noqa: E402

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
MERGES_FILE = "merges.txt.gz"
"""Merges of a tokenizer with fewer tokens than open_clip's 49,408; named `bpe_path` in the configuration."""
EXAMPLE = "ViT-B-32:openai"

DEFAULT_BATCH_SIZE = 16

# Files that open_clip looks for in a folder. It reads the last two with `weights_only`, so they cannot run code.
_WEIGHTS_PATTERNS = ("*.safetensors", "*.bin", "*.pth")
_TOWERS = ("text_cfg", "vision_cfg")


@dataclass(frozen=True)
class Ranking:
    """What CLIP finds out about pictures."""

    scores: Float[np.ndarray, " pictures"]
    """How well each picture fits the prompt; higher is better."""
    features: Float[np.ndarray, "pictures features"]
    """Each picture's features, of length 1: the product of two is how similar the pictures look."""


class Clip:
    """A CLIP with its tokenizer and its preprocessing of pictures."""

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        prepare: Callable[[Image.Image], torch.Tensor],
        tokenizer: Callable[[list[str]], torch.Tensor],
        config: Mapping[str, Any],
        device: str | None = None,
    ) -> None:
        """Combines the parts that open_clip makes; `Clip.load` loads them.

        Args:
            model: the model.
            prepare: preprocesses a picture.
            tokenizer: tokenizes prompts.
            config: content of `open_clip_config.json`.
            device: where the model runs; by default the GPU if there is one.
        """
        self.config = config
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        # `Any`: open_clip has no types.
        self.model: Any = model.to(self._device).eval()
        self._prepare = prepare
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, source: str | Path, device: str | None = None) -> "Clip":
        """Loads a CLIP; no code from its files is run.

        Args:
            source: a name with pretrained tag, such as `ViT-B-32:openai`, whose weights open_clip downloads once;
                or a folder with `open_clip_config.json` and weights, as written by `Clip.save` and found in
                open_clip's models on the Hugging Face hub. A `bpe_path` in its configuration is relative to the
                folder.
            device: where the model runs; by default the GPU if there is one.

        Raises:
            ModelError: the name or tag is unknown, the weights cannot be downloaded, or the folder cannot be used.
        """
        if isinstance(source, str) and not Path(source).exists():
            name, colon, tag = source.partition(":")
            if colon or name in open_clip.list_models():
                return cls._load_pretrained(name.replace("/", "-"), tag, device)
        return cls._load_folder(Path(source), device)

    @classmethod
    def _load_pretrained(cls, name: str, tag: str, device: str | None) -> "Clip":
        config = _pretrained_config(name, tag)
        try:
            model, prepare = open_clip.create_model_from_pretrained(
                name, pretrained=tag, force_quick_gelu=config["quick_gelu"], weights_only=True
            )
            tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:  # The hub, the network and the file may raise anything.
            raise ModelError(
                f"CLIP {name}:{tag}: the weights cannot be downloaded or read ({_line(error)}); "
                "check the network, or give a folder with the model"
            ) from error
        whole = {"model_cfg": config, "preprocess_cfg": open_clip.get_model_preprocess_cfg(model)}
        return cls(model=model, prepare=prepare, tokenizer=tokenizer, config=whole, device=device)

    @classmethod
    def _load_folder(cls, folder: Path, device: str | None) -> "Clip":
        config = _folder_config(folder)
        options = _tokenizer_options(folder, config["model_cfg"]["text_cfg"])
        source = f"local-dir:{folder}"
        try:
            model, prepare = open_clip.create_model_from_pretrained(source, weights_only=True)
            tokenizer = open_clip.get_tokenizer(source, **options)
        except Exception as error:  # Damage raises errors of many kinds in open_clip.
            raise ModelError(
                f"CLIP {folder}: cannot be loaded ({_line(error)}); it is damaged, or its files do not match; "
                "copy them again"
            ) from error
        return cls(model=model, prepare=prepare, tokenizer=tokenizer, config=config, device=device)

    def rank(
        self, prompt: str, pictures: Sequence[Image.Image], *, batch_size: int = DEFAULT_BATCH_SIZE
    ) -> Ranking:
        """Returns CLIP's `logits_per_image`, exp(logit_scale) * cosine(picture features, text features).

        DALL·E mini ranks by these. For OpenAI's models the scale is 100.

        Args:
            prompt: what the pictures should show; cut off after CLIP's text length (77 tokens).
            pictures: pictures of any size; they are resized for the model.
            batch_size: pictures per run of the model.
        """
        if not pictures:
            return Ranking(np.zeros(0, np.float32), np.zeros((0, 0), np.float32))
        with torch.inference_mode():
            text = self.model.encode_text(self._tokenizer([prompt]).to(self._device), normalize=True)
            features = torch.cat(
                [
                    self._picture_features(pictures[start : start + batch_size])
                    for start in range(0, len(pictures), batch_size)
                ]
            )
            logits = self.model.logit_scale.exp() * (features @ text[0])
            bias = getattr(self.model, "logit_bias", None)  # SigLIP has one.
            scores = logits if bias is None else logits + bias
            return Ranking(scores.float().cpu().numpy(), features.float().cpu().numpy())

    def scores(
        self, prompt: str, pictures: Sequence[Image.Image], *, batch_size: int = DEFAULT_BATCH_SIZE
    ) -> Float[np.ndarray, " pictures"]:
        """Returns the scores that `rank` returns."""
        return self.rank(prompt, pictures, batch_size=batch_size).scores

    def save(self, folder: Path) -> None:
        """Writes a folder that `Clip.load` reads; each file atomically."""
        write_folder(folder, self.model, self.config)
        if isinstance(self._tokenizer, HFTokenizer):
            self._tokenizer.save_pretrained(folder)
        elif isinstance(self._tokenizer, SimpleTokenizer) and _merges_file(
            self.config["model_cfg"]["text_cfg"]
        ):
            write_merges(folder / MERGES_FILE, self._tokenizer.bpe_ranks)

    def _picture_features(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        batch = torch.stack([self._prepare(picture) for picture in pictures])
        return self.model.encode_image(batch.to(self._device), normalize=True)


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


def write_merges(path: Path, merges: Iterable[tuple[str, str]]) -> None:
    """Writes the merges of open_clip's tokenizer, in order, as a file that it reads; reproducible byte for byte."""
    # The gzip header has neither name nor time. There is no empty line, since the tokenizer would read it as a merge.
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    write_atomically(path, gzip.compress("\n".join(lines).encode(), mtime=0))


def _merges_file(text: Mapping[str, Any]) -> str | None:
    """Returns the file name of the merges in a text tower's configuration."""
    options = text.get("tokenizer_kwargs")
    return options.get("bpe_path") if isinstance(options, dict) else None


def _tokenizer_options(folder: Path, text: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options for a folder's tokenizer that its configuration does not contain."""
    if text.get("hf_tokenizer_name"):
        # A tokenizer of the Hugging Face hub can contain code, and a folder's configuration could ask for it.
        return {"trust_remote_code": False}
    merges = _merges_file(text)
    if merges is None:
        return {}
    if merges != MERGES_FILE or not (folder / MERGES_FILE).is_file():
        raise ModelError(
            f"CLIP {folder / CONFIG_FILE}: bpe_path: {merges!r} must be {MERGES_FILE} in the folder; copy it again"
        )
    return {"bpe_path": str(folder / MERGES_FILE)}


def _pretrained_config(name: str, tag: str) -> dict[str, Any]:
    """Returns open_clip's configuration of a model, with the activation that the weights need.

    OpenAI's weights and several others need QuickGELU, which the configuration by name does not have. open_clip would
    only warn, and every score would be slightly wrong.
    """
    names = dict.fromkeys(known for known, _ in open_clip.list_pretrained())
    config = open_clip.get_model_config(name)
    if config is None or name not in names:
        raise ModelError(f"CLIP {name}:{tag}: unknown to open_clip; try {_near(name, names)}")
    if not open_clip.is_pretrained_cfg(name, tag):
        tags = _near(tag, open_clip.list_pretrained_tags_by_model(name))
        raise ModelError(f"CLIP {name}:{tag}: open_clip has no weights with this tag; try {tags}")
    quick_gelu = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
    return {**config, "quick_gelu": bool(quick_gelu or config.get("quick_gelu", False))}


def _folder_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelError(
            f"CLIP {folder}: no such folder; give a folder, or a name with pretrained tag such as {EXAMPLE}"
        )
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"CLIP {folder}: has no {CONFIG_FILE}; give a folder that open_clip wrote") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"CLIP {path}: cannot be read as JSON ({_line(error)}); copy it again") from None
    model = config.get("model_cfg") if isinstance(config, dict) else None
    if not (isinstance(model, dict) and all(isinstance(model.get(tower), dict) for tower in _TOWERS)):
        raise ModelError(f"CLIP {path}: has no model_cfg with {' and '.join(_TOWERS)}; copy it again")
    # Without weights, open_clip would only warn and use random ones.
    if not any(True for pattern in _WEIGHTS_PATTERNS for _ in folder.glob(pattern)):
        raise ModelError(f"CLIP {folder}: has no weights; add {WEIGHTS_FILE}")
    return config


def _near(given: str, known: Iterable[str]) -> str:
    """Returns the most similar names, or the first few if none is similar."""
    by_lower_case = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), by_lower_case, n=4, cutoff=0.5)
    return ", ".join(by_lower_case[name] for name in near or list(by_lower_case)[:4])


def _line(error: Exception) -> str:
    """Returns the first sentence of an error's text, as one short line."""
    return " ".join(str(error).split()).split(". ")[0][:200] or type(error).__name__
