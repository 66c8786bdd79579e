"""CLIPs that open_clip makes: those that it downloads by name, and folders with a network that is not a plain one.

Importing this module imports open_clip, which takes seconds.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from smalti.errors import ModelError
from smalti.models.clip_files import MERGES_FILE, ClipParts, first_sentence, merges_file, write_merges
from smalti.models.torchvision_operators import declare_missing_operators

declare_missing_operators()  # Before open_clip, which imports torchvision.

import open_clip as open_clip  # noqa: E402
from open_clip.tokenizer import HFTokenizer  # noqa: E402
from open_clip.tokenizer import SimpleTokenizer as SimpleTokenizer  # noqa: E402
from open_clip.tokenizer import get_clean_fn as get_clean_fn  # noqa: E402


def knows(name: str) -> bool:
    """Returns whether open_clip has a model of this name."""
    return name in open_clip.list_models()


def load_pretrained(name: str, tag: str) -> ClipParts:
    """Loads a CLIP by its names in open_clip, which downloads its weights once; raises `ModelError`."""
    config = _pretrained_config(name, tag)
    try:
        model, prepare = open_clip.create_model_from_pretrained(
            name, pretrained=tag, force_quick_gelu=config["quick_gelu"], weights_only=True
        )
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # The hub, the network and the file may raise anything.
        raise ModelError(
            f"CLIP {name}:{tag}: the weights cannot be downloaded or read ({first_sentence(error)}); "
            "check the network, or give a folder with the model"
        ) from error
    whole = {"model_cfg": config, "preprocess_cfg": open_clip.get_model_preprocess_cfg(model)}
    return _parts(model, prepare, tokenizer, whole)


def load_folder(folder: Path, config: Mapping[str, Any]) -> ClipParts:
    """Loads a CLIP's folder with its configuration; raises `ModelError`."""
    options = _tokenizer_options(folder, config["model_cfg"]["text_cfg"])
    source = f"local-dir:{folder}"
    try:
        model, prepare = open_clip.create_model_from_pretrained(source, weights_only=True)
        tokenizer = open_clip.get_tokenizer(source, **options)
    except Exception as error:  # Damage raises errors of many kinds in open_clip.
        raise ModelError(
            f"CLIP {folder}: cannot be loaded ({first_sentence(error)}); it is damaged, or its files do not match; "
            "copy them again"
        ) from error
    return _parts(model, prepare, tokenizer, config)


def _parts(model: Any, prepare: Any, tokenizer: Any, config: Mapping[str, Any]) -> ClipParts:
    def write_tokenizer(folder: Path) -> None:
        if isinstance(tokenizer, HFTokenizer):
            tokenizer.save_pretrained(folder)
        elif isinstance(tokenizer, SimpleTokenizer) and merges_file(config["model_cfg"]["text_cfg"]):
            write_merges(folder / MERGES_FILE, tokenizer.bpe_ranks)

    return ClipParts(
        model=model, prepare=prepare, tokenizer=tokenizer, write_tokenizer=write_tokenizer, config=config
    )


def _tokenizer_options(folder: Path, text: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options for a folder's tokenizer that its configuration does not contain."""
    if text.get("hf_tokenizer_name"):
        # A tokenizer of the Hugging Face hub can contain code, and a folder's configuration could ask for it.
        return {"trust_remote_code": False}
    return {} if merges_file(text) is None else {"bpe_path": str(folder / MERGES_FILE)}


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


def _near(given: str, known: Iterable[str]) -> str:
    """Returns the most similar names, or the first few if none is similar."""
    by_lower_case = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), by_lower_case, n=4, cutoff=0.5)
    return ", ".join(by_lower_case[name] for name in near or list(by_lower_case)[:4])
