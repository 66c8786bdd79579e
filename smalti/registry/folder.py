"""A model folder: all files of one model, and `model.json`, which says what they are.

* `model.json`: what `Manifest` describes
* `bart/`: `config.json` and `model.safetensors`
* `text/`, which may be one with `bart/`: `tokenizer.json`, or `vocab.json` and `merges.txt`
* `vqgan/`: `config.json` and `model.safetensors`
* `clip/`, unless it is one that open_clip fetches: `open_clip_config.json` and `open_clip_model.safetensors`
* the model card, if there is one: `README.md` with `samples.png`, which speak of the model and are no part of it
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from smalti.errors import ModelError
from smalti.parameters import Counts, SamplingParameters
from smalti.registry.manifest import (
    FORMAT,
    MANIFEST_FILE,
    ClipFolder,
    Manifest,
    clip_name,
    parse_manifest,
    read_manifest,
    write_manifest,
)
from smalti.text.vocabulary import KNOWN_WORDS_FILE

CARD_FILE = "README.md"
SAMPLES_FILE = "samples.png"
_NO_PART = {MANIFEST_FILE, CARD_FILE, SAMPLES_FILE}
"""A card quotes what was measured of a revision, so writing it must not make another one."""


@dataclass(frozen=True)
class ModelFolder:
    """A model folder whose `model.json` has been read."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Reads `model.json` of a folder; the files themselves are read when they are loaded, or by `verify`.

        Raises:
            ModelError: it is no folder, has no `model.json`, or one that cannot be used; says which field.
        """
        path = Path(path)
        if not path.is_dir():
            raise ModelError(f"{path}: {'is no folder' if path.exists() else 'there is no such folder'}")
        folder = cls(path, read_manifest(path))
        folder._check_parts()
        return folder

    @property
    def words_file(self) -> Path | None:
        """The list of words that the model knows; None for a model that reads any text."""
        return self.path / KNOWN_WORDS_FILE if KNOWN_WORDS_FILE in self.manifest.files else None

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        name: str,
        licence: str,
        clip: str | None = None,
        description: str = "",
        source: str = "",
        sampling: SamplingParameters | None = None,
        defaults: Counts | None = None,
    ) -> Self:
        """Writes `model.json` into a folder that holds the parts, and returns the model.

        The parts are the folders `bart`, `vqgan`, `clip`, and `text`, which may be one with `bart`.

        Args:
            path: the folder.
            name: the model's name: letters, digits, ".", "_" and "-".
            licence: its licence, by its SPDX identifier where it has one.
            clip: a name that open_clip knows, with its pretrained tag: "ViT-B-32:openai"; None for the folder
                `clip`. description: a sentence on the model. source: where the original files are from.
                sampling: what a drawing takes where its user asks for nothing else. defaults: how many
                pictures are drawn and kept.

        Raises:
            InvalidInputError: the CLIP is no name with a pretrained tag.
            ModelError: a part is missing, or another value cannot be used.
        """
        parts = {
            "text": "text" if (path / "text").is_dir() else "bart",
            "bart": "bart",
            "vqgan": "vqgan",
            "clip": {"folder": "clip"} if clip is None else clip_name(clip).model_dump(),
        }
        files = {file: _record(path / file) for file in _files(path)}
        fields = {
            "format": FORMAT,
            "name": name,
            "licence": licence,
            "revision": _revision(files, parts["clip"]),
            "description": description,
            "source": source,
            "parts": parts,
            "sampling": (sampling or SamplingParameters()).model_dump(),
            "defaults": (defaults or Counts()).model_dump(),
            "files": files,
        }
        # Before it is written: a folder that lacks a part stays without a `model.json`.
        folder = cls(path, parse_manifest(path / MANIFEST_FILE, fields))
        folder._check_parts()
        write_manifest(path, fields)
        return folder

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def revision(self) -> str:
        """What identifies the content: "sha256:" and 64 hexadecimal digits."""
        return self.manifest.revision

    @property
    def sampling(self) -> SamplingParameters:
        """What a drawing takes where its user asks for nothing else."""
        return self.manifest.sampling

    @property
    def defaults(self) -> Counts:
        """How many pictures are drawn and kept where the user asks for nothing else."""
        return self.manifest.defaults

    @property
    def size(self) -> int:
        """The size of its files in bytes, as `model.json` has it."""
        return sum(record.size for record in self.manifest.files.values())

    @property
    def text_folder(self) -> Path:
        """The folder of the text tokenizer."""
        return self.path / self.manifest.parts.text

    @property
    def bart_folder(self) -> Path:
        """The folder of the transformer."""
        return self.path / self.manifest.parts.bart

    @property
    def vqgan_folder(self) -> Path:
        """The folder of the VQGAN."""
        return self.path / self.manifest.parts.vqgan

    @property
    def clip_source(self) -> str | Path:
        """The folder of CLIP, or "name:tag" of one that open_clip fetches."""
        clip = self.manifest.parts.clip
        return self.path / clip.folder if isinstance(clip, ClipFolder) else f"{clip.name}:{clip.pretrained}"

    def verify(self) -> list[str]:
        """Reads every file and returns what is wrong, one line each; nothing when the model is whole.

        Files that are missing, changed, or not in `model.json`; a revision that is not that of the files;
        weights that do not fit their configurations, and parts that do not fit together.

        Raises:
            ModelError: JAX, or the library of text tokenizers, is not installed.
        """
        try:
            from smalti.registry.verify import problems_of
        except ModuleNotFoundError as error:
            raise ModelError(
                f"{self.path}: checking its weights needs {error.name}; pip install 'smalti[local]'"
            ) from error
        recorded = {file: record.model_dump() for file, record in self.manifest.files.items()}
        present = set(_files(self.path))
        problems = [f"{self.path / file}: missing" for file in recorded if file not in present]
        problems += [
            f"{self.path / file}: not in {MANIFEST_FILE}" for file in sorted(present - recorded.keys())
        ]
        for file in sorted(present & recorded.keys()):
            problems += _changes(self.path / file, recorded[file])
        if _revision(recorded, self.manifest.parts.clip.model_dump()) != self.revision:
            problems.append(f"{self.path / MANIFEST_FILE}: revision: not that of the files it lists")
        return problems + problems_of(self)

    def _check_parts(self) -> None:
        parts = {"text": self.text_folder, "bart": self.bart_folder, "vqgan": self.vqgan_folder}
        if isinstance(self.clip_source, Path):
            parts["clip"] = self.clip_source
        for part, folder in parts.items():
            if not folder.is_dir():
                raise ModelError(f"{self.path}: its {part} is missing: there is no folder {folder}")
            # A link to a folder would lead out of it as well as "..".
            if not folder.resolve().is_relative_to(self.path.resolve()):
                raise ModelError(f"{self.path}: its {part} is outside of it, in {folder.resolve()}")


def _files(folder: Path) -> Iterator[str]:
    """Gives the files of the model by their paths in its folder, in order; hidden ones belong to tools."""
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if (
            path.is_file()
            and not any(part.startswith(".") for part in inner.parts)
            and str(inner) not in _NO_PART
        ):
            yield inner.as_posix()


def _record(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _changes(path: Path, recorded: Mapping[str, Any]) -> list[str]:
    # The size is there at once; only a file that has the right one needs to be read.
    size = path.stat().st_size
    if size != recorded["size"]:
        return [f"{path}: changed: it has {size} bytes, {MANIFEST_FILE} says {recorded['size']}"]
    found = _record(path)["sha256"]
    if found != recorded["sha256"]:
        return [f"{path}: changed: its SHA-256 is {found}, {MANIFEST_FILE} says {recorded['sha256']}"]
    return []


def _revision(files: Mapping[str, Mapping[str, Any]], clip: object) -> str:
    """Returns the revision: the SHA-256 of the files' paths and digests, in order, and of the CLIP."""
    content = {"files": [[path, files[path]["sha256"]] for path in sorted(files)], "clip": clip}
    encoded = json.dumps(content, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
    return f"sha256:{hashlib.sha256(encoded).hexdigest()}"
