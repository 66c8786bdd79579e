"""Making a model folder from original checkpoints."""

import json
import shutil
from pathlib import Path

from smalti.errors import InvalidInputError, ModelError
from smalti.files import write_atomically
from smalti.outputs import Inputs, check_folder, whole_folder
from smalti.parameters import Defaults, SamplingParameters
from smalti.registry.folder import ModelFolder
from smalti.registry.manifest import check_name, clip_name
from smalti.registry.spec import find_mismatches
from smalti.settings import PREFIX, settings

DEFAULT_CLIP = "ViT-B-32:openai"
"""The CLIP that the authors of DALL·E mini rank with."""

DEFAULT_VQGAN = "dalle-mini/vqgan_imagenet_f16_16384"
"""Repository of the VQGAN of DALL·E mini and mega."""

# Suffix of the file names of min-dalle's smaller model.
MINI_SUFFIX = "_mini"

TEXT_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "enwiki-words-frequency.txt",
)
"""Files of the text tokenizer, and the word frequencies for splitting hashtags."""


def import_model(
    name: str,
    *,
    licence: str,
    bart: Path,
    vqgan: Path,
    clip: str | Path = DEFAULT_CLIP,
    text: Path | None = None,
    out: Path | None = None,
    description: str = "",
    source: str = "",
    sampling: SamplingParameters | None = None,
    defaults: Defaults | None = None,
) -> ModelFolder:
    """Makes a model folder from original files, completely or not at all.

    Everything is checked before the first weight is converted. At most one tensor is in memory at a time.

    Args:
        name: name of the model: letters, digits, ".", "_" and "-".
        licence: licence of the model, as an SPDX identifier if there is one.
        bart: folder of the transformer's weights, in any format that `docs/models.md` lists.
        vqgan: folder of the VQGAN's weights, or the file itself.
        clip: a CLIP folder of open_clip, or the name and pretrained tag of a CLIP that it downloads.
        text: folder of the text tokenizer; by default that of the transformer.
        out: the folder to make; by default one with this name among the user's models.
        description: one sentence about the model.
        source: where the original files come from.
        sampling: default sampling parameters.
        defaults: default numbers of pictures and candidates.

    Raises:
        InvalidInputError: the name, licence or CLIP is invalid, or the folder cannot be used.
        ModelError: a part is missing, damaged or does not fit.
        SmaltiError: a file cannot be read or written.
    """
    # JAX takes seconds to import; commands that only look models up should not wait for it.
    from smalti.registry import parts

    inputs: Inputs = {"bart": bart, "vqgan": vqgan, "clip": clip, "text": text}
    out = choose_folder(name, out, inputs)
    if not licence:
        raise InvalidInputError(
            "licence", "must not be empty; state the terms under which the model may be used"
        )
    clip_folder = Path(clip) if Path(clip).is_dir() else None
    if clip_folder is None:
        clip_name(str(clip))
    transformer, codebook = parts.BART.detect(bart), parts.VQGAN.detect(vqgan)
    raise_first(find_mismatches(bart, transformer.config, codebook.config))
    raise_first(parts.find_clip_problems(clip_folder) if clip_folder else [])
    with whole_folder(out, inputs=inputs) as temporary:
        mini = any(path.stem.endswith(MINI_SUFFIX) for path in transformer.checkpoint.files)
        _copy_text_files(text or (bart if bart.is_dir() else bart.parent), temporary / "text", mini=mini)
        raise_first(parts.find_tokenizer_problems(temporary / "text", transformer.config))
        for folder, network in (("bart", transformer), ("vqgan", codebook)):
            (temporary / folder).mkdir()
            network.checkpoint.save(temporary / folder)
            fields = json.dumps(network.config.fields(), indent=2, sort_keys=True)
            write_atomically(temporary / folder / parts.CONFIG_FILE, fields + "\n")
        if clip_folder:
            copy_files(clip_folder, temporary / "clip")
        ModelFolder.create(
            temporary,
            name=name,
            licence=licence,
            clip=None if clip_folder else str(clip),
            description=description,
            source=source,
            sampling=sampling,
            defaults=defaults,
        )
    return ModelFolder.open(out)


def choose_folder(name: str, out: Path | None, inputs: Inputs = {}) -> Path:  # noqa: B006
    """Returns the folder for a new model.

    Args:
        name: name of the model.
        out: the folder that the user asks for, if any.
        inputs: what the model is made from.

    Raises:
        InvalidInputError: the name is invalid, or the folder cannot be used.
    """
    check_name(name)
    out = folder_for(name, out)
    check_folder(out, inputs=inputs)
    return out


def folder_for(name: str, out: Path | None) -> Path:
    """Returns the folder that a user asks for, or the one with this name among the user's models.

    Raises:
        InvalidInputError: the user has no folder of models.
    """
    if out is not None:
        return out
    models = settings().models
    if models is None:
        raise InvalidInputError("out", f"must be given: this user has no home; or set {PREFIX}MODELS")
    return models / name


def copy_files(source: Path, target: Path) -> None:
    """Copies a folder without its hidden files; links become copies of the files that they point to.

    Args:
        source: the folder.
        target: the copy; may exist already.
    """
    shutil.copytree(
        source,
        target,
        copy_function=shutil.copyfile,
        ignore=shutil.ignore_patterns(".*"),
        dirs_exist_ok=True,
    )


def raise_first(problems: list[str]) -> None:
    """Raises `ModelError` with the first problem, if there is one."""
    if problems:
        raise ModelError(problems[0])


def _copy_text_files(source: Path, target: Path, *, mini: bool) -> None:
    target.mkdir()
    for name in TEXT_FILES:
        stem, dot, suffix = name.partition(".")
        names = (f"{stem}{MINI_SUFFIX}{dot}{suffix}", name) if mini else (name,)
        found = [source / candidate for candidate in names if (source / candidate).is_file()]
        if found:
            shutil.copyfile(found[0], target / name)
