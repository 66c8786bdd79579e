"""CLIP: how well a picture fits a prompt (Radford et al. 2021, https://arxiv.org/abs/2103.00020)."""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file

from smalti.errors import ModelError
from smalti.models.clip_files import (
    CONFIG_FILE,
    MERGES_FILE,
    WEIGHTS_FILE,
    ClipParts,
    load_config,
    merges_file,
    write_folder,
    write_merges,
)
from smalti.models.clip_inputs import ClipTokenizer, picture_reader
from smalti.models.clip_network import PlainClip, is_plain

__all__ = [
    "CONFIG_FILE",
    "MERGES_FILE",
    "WEIGHTS_FILE",
    "Clip",
    "Ranking",
    "write_folder",
    "write_merges",
]

_MAX_SMALL = 10_000_000
"""Parameters of a network that runs on one core. Its products are so short that threads wait for each other most of the
time; the shipped ranker took 20 times as much processor time with two threads on a busy machine."""

_OPEN_CLIP_MERGES = "bpe_simple_vocab_16e6.txt.gz"
"""The merges that open_clip's tokenizer has by default, in its package."""


@dataclass(frozen=True)
class Ranking:
    """What CLIP finds out about pictures."""

    scores: Float[np.ndarray, " pictures"]
    """How well each picture fits the prompt; higher is better."""
    features: Float[np.ndarray, "pictures features"]
    """Each picture's features, of length 1: the product of two is how similar the pictures look."""


class Clip:
    """A CLIP with its tokenizer and its preprocessing of pictures."""

    batch_size: ClassVar[int] = 16
    """Pictures per run of the model, unless another number is given."""

    def __init__(self, parts: ClipParts, *, device: str | None = None) -> None:
        """Combines the parts; `Clip.load` loads them.

        Args:
            parts: the parts.
            device: where the model runs; by default the GPU if there is one.
        """
        self.config = parts.config
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        # `Any`: open_clip has no types.
        self.model: Any = parts.model.to(self._device).eval()
        self._parts = parts
        self._small = sum(each.numel() for each in self.model.parameters()) <= _MAX_SMALL

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
            from smalti.models import open_clip_models

            name, colon, tag = source.partition(":")
            if colon or open_clip_models.knows(name):
                return cls(open_clip_models.load_pretrained(name.replace("/", "-"), tag), device=device)
        folder = Path(source)
        config = load_config(folder)
        _check_merges(folder, config["model_cfg"]["text_cfg"])
        parts = _load_plain(folder, config)
        if parts is None:
            from smalti.models import open_clip_models

            parts = open_clip_models.load_folder(folder, config)
        return cls(parts, device=device)

    def rank(self, prompt: str, pictures: Sequence[Image.Image], *, batch_size: int | None = None) -> Ranking:
        """Returns CLIP's `logits_per_image`, exp(logit_scale) * cosine(picture features, text features).

        DALL·E mini ranks by these. For OpenAI's models the scale is 100.

        Args:
            prompt: what the pictures should show; cut off after CLIP's text length (77 tokens).
            pictures: pictures of any size; they are resized for the model.
            batch_size: pictures per run of the model; None for `Clip.batch_size`.
        """
        size = batch_size or self.batch_size
        if not pictures:
            return Ranking(np.zeros(0, np.float32), np.zeros((0, 0), np.float32))
        with torch.inference_mode(), _one_thread() if self._small else nullcontext():
            text = self.model.encode_text(self._parts.tokenizer([prompt]).to(self._device), normalize=True)
            features = torch.cat(
                [
                    self._picture_features(pictures[start : start + size])
                    for start in range(0, len(pictures), size)
                ]
            )
            logits = self.model.logit_scale.exp() * (features @ text[0])
            bias = getattr(self.model, "logit_bias", None)  # SigLIP has one.
            scores = logits if bias is None else logits + bias
            return Ranking(scores.float().cpu().numpy(), features.float().cpu().numpy())

    def scores(
        self, prompt: str, pictures: Sequence[Image.Image], *, batch_size: int | None = None
    ) -> Float[np.ndarray, " pictures"]:
        """Returns the scores that `rank` returns."""
        return self.rank(prompt, pictures, batch_size=batch_size).scores

    def save(self, folder: Path) -> None:
        """Writes a folder that `Clip.load` reads; each file atomically."""
        write_folder(folder, self.model, self.config)
        self._parts.write_tokenizer(folder)

    def _picture_features(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        batch = torch.stack([self._parts.prepare(picture) for picture in pictures])
        return self.model.encode_image(batch.to(self._device), normalize=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Lets this thread compute without help from others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_merges(folder: Path, text: Mapping[str, Any]) -> None:
    """Raises `ModelError` if a configuration names merges that are not in its folder."""
    merges = merges_file(text)
    if merges is not None and (merges != MERGES_FILE or not (folder / MERGES_FILE).is_file()):
        raise ModelError(
            f"CLIP {folder / CONFIG_FILE}: bpe_path: {merges!r} must be {MERGES_FILE} in the folder; copy it again"
        )


def _load_plain(folder: Path, config: Mapping[str, Any]) -> ClipParts | None:
    """Loads a folder without open_clip; returns None if open_clip is needed, if only to say what is wrong."""
    options = config["model_cfg"]
    if not is_plain(options):
        return None
    text, size = options["text_cfg"], options["vision_cfg"]["image_size"]
    prepare = picture_reader(config.get("preprocess_cfg", {}), size)
    merges = folder / MERGES_FILE if merges_file(text) else _open_clip_merges()
    if prepare is None or merges is None or text.get("tokenizer_kwargs", {}).keys() - {"bpe_path"}:
        return None
    try:
        tokenizer = ClipTokenizer.load(merges, text["context_length"])
        # Not on torch's "meta" device, which would save making random weights but imports sympy.
        with _one_thread():  # As for its steps: it makes many small arrays.
            model = PlainClip(options)
            model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except Exception:  # Damage raises errors of many kinds.
        return None

    def write_tokenizer(target: Path) -> None:
        if merges_file(text):
            write_merges(target / MERGES_FILE, tokenizer.merges)

    return ClipParts(
        model=model, prepare=prepare, tokenizer=tokenizer, write_tokenizer=write_tokenizer, config=config
    )


def _open_clip_merges() -> Path | None:
    found = importlib.util.find_spec("open_clip")
    return None if found is None or found.origin is None else Path(found.origin).with_name(_OPEN_CLIP_MERGES)
