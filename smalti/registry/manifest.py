"""`model.json`: what a model folder says of itself."""

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationError

from smalti.errors import InvalidInputError, ModelError
from smalti.files import read_json_object, write_atomically
from smalti.parameters import Counts, SamplingParameters
from smalti.validation import Strict, first_problem

MANIFEST_FILE = "model.json"
FORMAT = 1


def _inside(value: str) -> str:
    path = PurePosixPath(value)
    if not value or path.is_absolute() or ".." in path.parts or "\\" in value:
        raise ValueError("a path inside of the model's folder is expected")
    return str(path)


NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"

Name = Annotated[str, Field(pattern=NAME)]
InnerPath = Annotated[str, AfterValidator(_inside)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ClipFolder(Strict):
    """A CLIP that is in the model's folder."""

    folder: InnerPath


class ClipName(Strict):
    """A CLIP that open_clip fetches: `name` and `pretrained` as in `open_clip.list_pretrained()`."""

    name: Annotated[str, Field(min_length=1)]
    pretrained: Annotated[str, Field(min_length=1)]


class Parts(Strict):
    """Where the parts of the model are, relative to its folder."""

    text: InnerPath
    bart: InnerPath
    vqgan: InnerPath
    clip: ClipFolder | ClipName


class FileRecord(Strict):
    """What a file of the model has to be."""

    size: Annotated[int, Field(ge=0)]
    sha256: Digest


class Manifest(Strict):
    """What `model.json` holds."""

    model_config = ConfigDict(strict=True)

    format: Literal[1]
    name: Name
    licence: Annotated[str, Field(min_length=1)]
    revision: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    """Of the content alone: the same files and the same CLIP give the same revision, under any name."""
    description: str = ""
    source: str = ""
    """Where the original files are from."""
    parts: Parts
    sampling: SamplingParameters = SamplingParameters()
    """What a drawing takes where its user asks for nothing else."""
    defaults: Counts = Counts()
    files: dict[InnerPath, FileRecord]
    """Every file of the folder, but for `model.json` and hidden ones."""


def read_manifest(folder: Path) -> Manifest:
    """Reads `model.json` of a folder.

    Raises:
        ModelError: it is not there, or cannot be used; says which field.
    """
    file = folder / MANIFEST_FILE
    missing = f"{folder}: is no model: no {MANIFEST_FILE} in it; make one with `smalti import`"
    return parse_manifest(file, read_json_object(file, missing))


def write_manifest(folder: Path, fields: Mapping[str, Any]) -> Manifest:
    """Writes `model.json` into a folder, whole or not at all, and returns what it says.

    Raises:
        ModelError: a field cannot be used; says which. Nothing is written then.
    """
    manifest = parse_manifest(folder / MANIFEST_FILE, fields)
    write_atomically(folder / MANIFEST_FILE, json.dumps(fields, indent=2, ensure_ascii=False) + "\n")
    return manifest


def check_name(name: str) -> None:
    """Raises `InvalidInputError` if a model cannot have this name."""
    if not re.fullmatch(NAME, name):
        raise InvalidInputError("name", f"{name!r} is not made of letters, digits, '.', '_' and '-' alone")


def clip_name(clip: str) -> ClipName:
    """Returns a CLIP given as "ViT-B-32:openai"; raises `InvalidInputError` if it has not that form."""
    name, _, pretrained = clip.partition(":")
    if not name or not pretrained:
        problem = f"{clip!r} is neither a folder nor a name with its pretrained tag, such as ViT-B-32:openai"
        raise InvalidInputError("clip", problem)
    return ClipName(name=name, pretrained=pretrained)


def parse_manifest(file: Path, fields: Mapping[str, Any]) -> Manifest:
    """Makes a manifest of what a `model.json` holds.

    Raises:
        ModelError: it is of an unknown format, or a field cannot be used; says which.
    """
    if fields.get("format", FORMAT) != FORMAT:
        raise ModelError(
            f"{file}: format {json.dumps(fields['format'])} is unknown, this Smalti reads {FORMAT}; update it"
        )
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        raise ModelError(f"{file}: {first_problem(error)}") from None
