"""A tiny CLIP."""

from pathlib import Path
from typing import Any

import torch

from smalti.models.clip import write_folder

# The vocabulary of the tokenizer in open_clip, so that nothing is downloaded.
_CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


def tiny_clip(folder: Path, seed: int = 0) -> None:
    """Writes a CLIP with random weights in the folder format of open_clip; a seed determines all bytes.

    Args:
        folder: the folder to write; created if it is missing.
        seed: the seed of the random weights.
    """
    from smalti.models.open_clip_models import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(**_CONFIG)
    write_folder(folder, model, {"model_cfg": _CONFIG, "preprocess_cfg": {}})
