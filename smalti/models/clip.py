"""CLIP through open_clip: how well a picture fits a prompt (Radford et al. 2021, https://arxiv.org/abs/2103.00020)."""

import difflib
import gzip
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
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
"""The words of a model that has fewer than open_clip's 49,408; its configuration names the file as `bpe_path`."""
EXAMPLE = "ViT-B-32:openai"

DEFAULT_BATCH_SIZE = 16

# What open_clip looks for in a folder. It reads the last two with `weights_only`, so they cannot run code.
_WEIGHTS_PATTERNS = ("*.safetensors", "*.bin", "*.pth")
_TOWERS = ("text_cfg", "vision_cfg")


class Clip:
    """A CLIP with its tokenizer and its way to prepare pictures, ready to score."""

    def __init__(
        self,
        model: torch.nn.Module,
        prepare: Callable[[Image.Image], torch.Tensor],
        tokenizer: Callable[[list[str]], torch.Tensor],
        config: Mapping[str, Any],
        device: str | None = None,
    ) -> None:
        """Joins open_clip's parts; `Clip.load` makes them.

        Args:
            model: open_clip's model.
            prepare: a picture to the model's input.
            tokenizer: prompts to the model's input.
            config: what `open_clip_config.json` holds.
            device: where the model runs; by default the GPU if there is one.
        """
        self.config = config
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        # `Any`: its methods are open_clip's, which has no types.
        self.model: Any = model.to(self._device).eval()
        self._prepare = prepare
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, source: str | Path, device: str | None = None) -> "Clip":
        """Loads a CLIP, without running code of its files.

        Args:
            source: a name with pretrained tag, `ViT-B-32:openai`, whose weights open_clip fetches once and
                keeps; or a folder with `open_clip_config.json` and weights, such as `Clip.save` writes and
                open_clip's models on the Hugging Face hub have. A `bpe_path` in its configuration is a file
                of the folder, wherever the folder lies.
            device: where the model runs; by default the GPU if there is one.

        Raises:
            ModelError: unknown name or tag, weights that cannot be fetched, or a folder that cannot be used.
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
        except Exception as error:  # Whatever the hub, the network and the file raise.
            raise ModelError(
                f"CLIP {name}:{tag}: the weights cannot be fetched or read ({_line(error)}); "
                "check the network, or give a folder with the model"
            ) from error
        whole = {"model_cfg": config, "preprocess_cfg": open_clip.get_model_preprocess_cfg(model)}
        return cls(model, prepare, tokenizer, whole, device)

    @classmethod
    def _load_folder(cls, folder: Path, device: str | None) -> "Clip":
        config = _folder_config(folder)
        options = _tokenizer_options(folder, config["model_cfg"]["text_cfg"])
        place = f"local-dir:{folder}"
        try:
            model, prepare = open_clip.create_model_from_pretrained(place, weights_only=True)
            tokenizer = open_clip.get_tokenizer(place, **options)
        except Exception as error:  # open_clip wraps damage of any kind in errors of many kinds.
            raise ModelError(
                f"CLIP {folder}: cannot be loaded ({_line(error)}); it is damaged or its files do not belong "
                "together, copy them again"
            ) from error
        return cls(model, prepare, tokenizer, config, device)

    def scores(
        self, prompt: str, pictures: Sequence[Image.Image], *, batch_size: int = DEFAULT_BATCH_SIZE
    ) -> Float[np.ndarray, " pictures"]:
        """Returns CLIP's `logits_per_image`: exp(logit_scale) * cosine(picture features, text features).

        DALL·E mini ranks by them. For OpenAI's models the scale is 100.

        Args:
            prompt: what the pictures should show; past CLIP's text length (77 tokens) its end is cut off.
            pictures: of any size; they are resized as the model wants them.
            batch_size: pictures in one run of the model.
        """
        if not pictures:
            return np.zeros(0, np.float32)
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
            return (logits if bias is None else logits + bias).float().cpu().numpy()

    def save(self, folder: Path) -> None:
        """Writes the folder that `Clip.load` reads; each file whole or not at all."""
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
        folder: where; it is made if it is not there.
        model: open_clip's model.
        config: `model_cfg` and `preprocess_cfg`, as open_clip has them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    # Both are written before either gets its name: new weights never stay beside an old configuration.
    with atomic_path(folder / CONFIG_FILE) as config_path, atomic_path(folder / WEIGHTS_FILE) as weights_path:
        save_file(weights, weights_path)
        config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_merges(path: Path, merges: Iterable[tuple[str, str]]) -> None:
    """Writes what open_clip's tokenizer merges, in its order, as a file that it reads; equal merges, equal bytes."""
    # Neither the name nor the time stands in the header, and no line is left empty: the tokenizer would take it in.
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    write_atomically(path, gzip.compress("\n".join(lines).encode(), mtime=0))


def _merges_file(text: Mapping[str, Any]) -> str | None:
    """Returns the name that the configuration of a text tower gives its merges."""
    options = text.get("tokenizer_kwargs")
    return options.get("bpe_path") if isinstance(options, dict) else None


def _tokenizer_options(folder: Path, text: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what open_clip must be told of a folder's tokenizer beside its configuration."""
    if text.get("hf_tokenizer_name"):
        # A tokenizer of the Hugging Face hub can bring code, and a folder's configuration could ask for it.
        return {"trust_remote_code": False}
    merges = _merges_file(text)
    if merges is None:
        return {}
    if merges != MERGES_FILE or not (folder / MERGES_FILE).is_file():
        raise ModelError(
            f"CLIP {folder / CONFIG_FILE}: bpe_path: {merges!r} is not {MERGES_FILE} in the folder; copy it again"
        )
    return {"bpe_path": str(folder / MERGES_FILE)}


def _pretrained_config(name: str, tag: str) -> dict[str, Any]:
    """Returns open_clip's configuration of a name, with the activation of the tag's weights.

    OpenAI's weights and several others need QuickGELU, which the plain name's configuration does not have;
    open_clip only warns, and every score would be slightly wrong.
    """
    names = dict.fromkeys(known for known, _ in open_clip.list_pretrained())
    config = open_clip.get_model_config(name)
    if config is None or name not in names:
        raise ModelError(f"CLIP {name}:{tag}: open_clip has no model of that name; try {_near(name, names)}")
    if not open_clip.is_pretrained_cfg(name, tag):
        tags = _near(tag, open_clip.list_pretrained_tags_by_model(name))
        raise ModelError(f"CLIP {name}:{tag}: open_clip has no weights of that tag; try {tags}")
    quick_gelu = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
    return {**config, "quick_gelu": bool(quick_gelu or config.get("quick_gelu", False))}


def _folder_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelError(
            f"CLIP {folder}: there is no such folder; give one, or a name with pretrained tag like {EXAMPLE}"
        )
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"CLIP {folder}: no {CONFIG_FILE} in it; open_clip's folders have one") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"CLIP {path}: cannot be read as JSON ({_line(error)}); copy it again") from None
    model = config.get("model_cfg") if isinstance(config, dict) else None
    if not (isinstance(model, dict) and all(isinstance(model.get(tower), dict) for tower in _TOWERS)):
        raise ModelError(f"CLIP {path}: no model_cfg with {' and '.join(_TOWERS)} in it; copy it again")
    # Without weights open_clip would only warn, and score with random ones.
    if not any(True for pattern in _WEIGHTS_PATTERNS for _ in folder.glob(pattern)):
        raise ModelError(f"CLIP {folder}: no weights in it; {WEIGHTS_FILE} is expected")
    return config


def _near(given: str, known: Iterable[str]) -> str:
    """Returns what could have been meant: the nearest names, or the first where none is near."""
    by_lower_case = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), by_lower_case, n=4, cutoff=0.5)
    return ", ".join(by_lower_case[name] for name in near or list(by_lower_case)[:4])


def _line(error: Exception) -> str:
    """Returns the first sentence of an error's text, as one line that is not too long."""
    return " ".join(str(error).split()).split(". ")[0][:200] or type(error).__name__
