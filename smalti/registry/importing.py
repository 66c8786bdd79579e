"""Making a model folder from original files."""

import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smalti.errors import InvalidInputError, ModelError
from smalti.files import write_atomically
from smalti.parameters import Counts, SamplingParameters
from smalti.registry.folder import ModelFolder
from smalti.registry.manifest import check_name, clip_name
from smalti.settings import settings

DEFAULT_CLIP = "ViT-B-32:openai"
"""The CLIP that DALL·E mini was shown with."""

DEFAULT_VQGAN = "dalle-mini/vqgan_imagenet_f16_16384"
"""The repository of the VQGAN of DALL·E mini and mega."""

# What min-dalle adds to the names of the files of its smaller model.
MINI = "_mini"

TEXT_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "enwiki-words-frequency.txt",
)
"""The files of the text tokenizer, and the words that hashtags are split into."""


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
    defaults: Counts | None = None,
) -> ModelFolder:
    """Makes a model folder from original files, whole or not at all.

    Everything is checked before the first weight is converted, and no more than one tensor is in memory.

    Args:
        name: the model's name: letters, digits, ".", "_" and "-".
        licence: its licence, by its SPDX identifier where it has one.
        bart: the folder of the transformer's weights, in any format that `docs/models.md` lists.
        vqgan: the folder of the VQGAN's weights, or the file itself.
        clip: a folder of open_clip's, or a name that open_clip knows with its pretrained tag.
        text: the folder of the text tokenizer; by default that of the transformer.
        out: the folder to make; by default one of this name among the user's models.
        description: a sentence on the model.
        source: where the original files are from.
        sampling: what a drawing takes where its user asks for nothing else.
        defaults: how many pictures are drawn and kept.

    Raises:
        InvalidInputError: a model cannot have this name, licence or CLIP.
        ModelError: a part is missing, damaged or does not fit, the folder is already there or cannot be
            written.
    """
    # JAX takes seconds to start, which whoever only looks models up should not wait for.
    from smalti.registry import verify

    out = check_place(name, out)
    if not licence:
        raise InvalidInputError("licence", "it is empty; say under which terms the model may be used")
    clip_folder = Path(clip) if Path(clip).is_dir() else None
    if clip_folder is None:
        clip_name(str(clip))
    transformer, codebook = verify.BART.find(bart), verify.VQGAN.find(vqgan)
    refuse(verify.pair_problems(bart, transformer.config, codebook.config))
    refuse(verify.clip_problems(clip_folder) if clip_folder else [])
    with new_folder(out) as temporary:
        mini = any(path.stem.endswith(MINI) for path in transformer.checkpoint.files)
        _copy_text_files(text or (bart if bart.is_dir() else bart.parent), temporary / "text", mini=mini)
        refuse(verify.text_problems(temporary / "text", transformer.config))
        for folder, network in (("bart", transformer), ("vqgan", codebook)):
            (temporary / folder).mkdir()
            network.checkpoint.save(temporary / folder)
            fields = json.dumps(network.config.fields(), indent=2, sort_keys=True)
            write_atomically(temporary / folder / verify.CONFIG_FILE, fields + "\n")
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


def check_place(name: str, out: Path | None) -> Path:
    """Returns the folder that a new model goes into.

    Args:
        name: the model's name.
        out: the folder, if the user gives one.

    Raises:
        InvalidInputError: a model cannot have this name.
        ModelError: there is something already.
    """
    check_name(name)
    out = settings().models / name if out is None else out
    if out.exists():
        raise ModelError(f"{out}: is there already; remove it, or choose another name or folder")
    return out


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `path`, and renames it to `path` when the block ends well.

    When the block raises (an error, Ctrl-C, a full disk) nothing of it stays.

    Raises:
        ModelError: a file of it cannot be written, or one that is copied into it cannot be read.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(path)
    except OSError as error:
        raise ModelError(f"{error.filename or path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_files(source: Path, target: Path) -> None:
    """Copies the files of a folder, but for hidden ones; links become the files that they lead to."""
    shutil.copytree(source, target, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns(".*"))


def refuse(problems: list[str]) -> None:
    """Raises `ModelError` with the first problem, if there is one."""
    if problems:
        raise ModelError(problems[0])


def _copy_text_files(source: Path, target: Path, *, mini: bool) -> None:
    target.mkdir()
    for name in TEXT_FILES:
        stem, dot, suffix = name.partition(".")
        names = (f"{stem}{MINI}{dot}{suffix}", name) if mini else (name,)
        found = [source / candidate for candidate in names if (source / candidate).is_file()]
        if found:
            shutil.copyfile(found[0], target / name)
