"""A model folder: all files of one model, described by its `model.json`.

* `model.json`: the manifest; see `smalti.registry.manifest`
* `bart/`: `config.json` and `model.safetensors`
* `text/`, or together with `bart/`: `tokenizer.json`, or `vocab.json` and `merges.txt`
* `vqgan/`: `config.json` and `model.safetensors`
* `clip/`, unless open_clip downloads the CLIP: `open_clip_config.json` and `open_clip_model.safetensors`
* `refiner/`, optional: `config.json` and `model.safetensors`
* optionally the model card: `README.md` and `samples.png`, which are not part of the model
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from smalti.errors import ModelError
from smalti.parameters import Defaults, SamplingParameters
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
REFINER = "refiner"
"""Folder of the refiner."""
_NOT_PARTS = {MANIFEST_FILE, CARD_FILE, SAMPLES_FILE}
"""The card quotes measurements of a revision, so writing the card must not change the revision."""


@dataclass(frozen=True)
class ModelFolder:
    """A model folder whose `model.json` has been read."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Reads the `model.json` of a folder, and no other file.

        Raises:
            ModelError: there is no such folder, or its `model.json` is missing or invalid; names the field.
        """
        path = Path(path)
        if not path.is_dir():
            raise ModelError(f"{path}: {'not a folder' if path.exists() else 'no such folder'}")
        folder = cls(path, read_manifest(path))
        folder._check_parts()
        return folder

    @property
    def words_file(self) -> Path | None:
        """File with the words that the model knows; None for a model that reads any text."""
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
        defaults: Defaults | None = None,
    ) -> Self:
        """Writes `model.json` into a folder that holds the parts of a model, and returns the model.

        The parts are the folders `bart`, `vqgan`, `clip`, `text` and `refiner`. Without `text`, the tokenizer is in
        `bart`; a model need not have a `refiner`.

        Args:
            path: the folder.
            name: name of the model: letters, digits, ".", "_" and "-".
            licence: licence of the model, as an SPDX identifier if there is one.
            clip: name and pretrained tag of a CLIP that open_clip downloads, such as "ViT-B-32:openai"; None
                for the folder `clip`.
            description: one sentence about the model.
            source: where the original files come from.
            sampling: default sampling parameters.
            defaults: what a request gets that does not say otherwise.

        Raises:
            InvalidInputError: `clip` has no pretrained tag.
            ModelError: a part is missing, or another value is invalid.
        """
        clip_entry = (ClipFolder(folder="clip") if clip is None else clip_name(clip)).model_dump()
        parts: dict[str, Any] = {
            "text": "text" if (path / "text").is_dir() else "bart",
            "bart": "bart",
            "vqgan": "vqgan",
            "clip": clip_entry,
        }
        digests = {file: sha256_of(path / file) for file in list_files(path)}
        refiner = None
        if (path / REFINER).is_dir():
            refiner = REFINER
            parts["refiner"] = {"folder": refiner, "revision": refiner_revision_of(digests, refiner)}
        fields = {
            "format": FORMAT,
            "name": name,
            "licence": licence,
            "revision": revision_of(digests, clip_entry, refiner),
            "description": description,
            "source": source,
            "parts": parts,
            "sampling": (sampling or SamplingParameters()).model_dump(),
            "defaults": (defaults or Defaults()).model_dump(),
            "files": {
                file: {"size": (path / file).stat().st_size, "sha256": digest}
                for file, digest in digests.items()
            },
        }
        # Checked before it is written: a folder that lacks a part gets no `model.json`.
        folder = cls(path, parse_manifest(path / MANIFEST_FILE, fields))
        folder._check_parts()
        write_manifest(path, fields)
        return folder

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.manifest.name

    @property
    def revision(self) -> str:
        """Identifies the content: "sha256:" and 64 hexadecimal digits."""
        return self.manifest.revision

    @property
    def sampling(self) -> SamplingParameters:
        """Default sampling parameters."""
        return self.manifest.sampling

    @property
    def defaults(self) -> Defaults:
        """What a request gets that does not say otherwise: numbers of pictures and candidates, and their variety."""
        return self.manifest.defaults

    @property
    def size(self) -> int:
        """Total size of the files in bytes, according to `model.json`."""
        return sum(record.size for record in self.manifest.files.values())

    @property
    def text_folder(self) -> Path:
        """Folder of the text tokenizer."""
        return self.path / self.manifest.parts.text

    @property
    def bart_folder(self) -> Path:
        """Folder of the transformer."""
        return self.path / self.manifest.parts.bart

    @property
    def vqgan_folder(self) -> Path:
        """Folder of the VQGAN."""
        return self.path / self.manifest.parts.vqgan

    @property
    def clip_source(self) -> str | Path:
        """Folder of CLIP, or the "name:tag" of one that open_clip downloads."""
        clip = self.manifest.parts.clip
        return self.path / clip.folder if isinstance(clip, ClipFolder) else f"{clip.name}:{clip.pretrained}"

    @property
    def refiner_folder(self) -> Path | None:
        """Folder of the refiner; None if the model has none."""
        refiner = self.manifest.parts.refiner
        return self.path / refiner.folder if refiner else None

    @property
    def refiner_revision(self) -> str | None:
        """Identifies the refiner's files, as `revision` does those of the model; None if it has no refiner."""
        refiner = self.manifest.parts.refiner
        return refiner.revision if refiner else None

    def _check_parts(self) -> None:
        parts = {"text": self.text_folder, "bart": self.bart_folder, "vqgan": self.vqgan_folder}
        if isinstance(self.clip_source, Path):
            parts["clip"] = self.clip_source
        if self.refiner_folder is not None:
            parts["refiner"] = self.refiner_folder
        for part, folder in parts.items():
            if not folder.is_dir():
                raise ModelError(f"{self.path}: part {part} is missing: no folder {folder}")
            # A link could lead out of the folder just as ".." could.
            if not folder.resolve().is_relative_to(self.path.resolve()):
                raise ModelError(f"{self.path}: part {part} is outside the model folder: {folder.resolve()}")


def list_files(folder: Path) -> Iterator[str]:
    """Yields the paths of a model's files relative to its folder, sorted; hidden files belong to other tools."""
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if (
            path.is_file()
            and not any(part.startswith(".") for part in inner.parts)
            and str(inner) not in _NOT_PARTS
        ):
            yield inner.as_posix()


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def revision_of(digests: Mapping[str, str], clip: Mapping[str, str], refiner: str | None = None) -> str:
    """Returns the revision of a model: a SHA-256 over its files and its CLIP, without those of its refiner.

    Args:
        digests: SHA-256 of each file by its path in the folder.
        clip: the entry `parts.clip` of the manifest.
        refiner: folder of the refiner, if the model has one.
    """
    files = [[path, digests[path]] for path in sorted(digests) if not _is_inside(path, refiner)]
    return digest_of({"files": files, "clip": clip})


def refiner_revision_of(digests: Mapping[str, str], refiner: str) -> str:
    """Returns the revision of a refiner: a SHA-256 over its files; arguments as for `revision_of`."""
    files = [
        [path.removeprefix(f"{refiner}/"), digests[path]]
        for path in sorted(digests)
        if _is_inside(path, refiner)
    ]
    return digest_of({"files": files})


def _is_inside(path: str, folder: str | None) -> bool:
    return folder is not None and path.startswith(f"{folder}/")


def digest_of(content: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of content as JSON, "sha256:" and 64 hexadecimal digits."""
    encoded = json.dumps(content, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
    return f"sha256:{hashlib.sha256(encoded).hexdigest()}"
