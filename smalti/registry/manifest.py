"""`model.json`, the manifest of a model folder."""

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationError

from smalti.errors import InvalidInputError, ModelError
from smalti.files import read_json_object, write_atomically
from smalti.parameters import Defaults, SamplingParameters
from smalti.validation import Strict, first_problem

MANIFEST_FILE = "model.json"
FORMAT = 1


def _inside(value: str) -> str:
    path = PurePosixPath(value)
    if not value or path.is_absolute() or ".." in path.parts or "\\" in value:
        raise ValueError("must be a path inside the model folder")
    return str(path)


NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
_NAME_RULE = "up to 100 letters, digits, '.', '_' and '-', a letter or digit first"

Name = Annotated[str, Field(pattern=NAME)]
InnerPath = Annotated[str, AfterValidator(_inside)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Revision = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class ClipFolder(Strict):
    """A CLIP in the model folder."""

    folder: InnerPath


class ClipName(Strict):
    """A CLIP that open_clip downloads, by its names in `open_clip.list_pretrained()`."""

    name: Annotated[str, Field(min_length=1)]
    pretrained: Annotated[str, Field(min_length=1)]


class RefinerFolder(Strict):
    """A refiner in the model folder."""

    folder: InnerPath
    revision: Revision
    """Identifies its files. They do not count for the revision of the model, whose pictures they do not change."""


class Parts(Strict):
    """The parts of the model, as paths relative to its folder."""

    text: InnerPath
    bart: InnerPath
    vqgan: InnerPath
    clip: ClipFolder | ClipName
    refiner: RefinerFolder | None = None
    """None for a model without a refiner."""


class FileRecord(Strict):
    """Size in bytes and SHA-256 of one file."""

    size: Annotated[int, Field(ge=0)]
    sha256: Digest


class Manifest(Strict):
    """The content of `model.json`."""

    model_config = ConfigDict(strict=True)

    format: Literal[1]
    name: Name
    licence: Annotated[str, Field(min_length=1)]
    revision: Revision
    """Identifies the content: the same files and the same CLIP give the same revision, whatever the name."""
    description: str = ""
    source: str = ""
    """Source of the original files."""
    parts: Parts
    sampling: SamplingParameters = SamplingParameters()
    """Default sampling parameters."""
    defaults: Defaults = Defaults()
    """What a request gets that does not say otherwise."""
    files: dict[InnerPath, FileRecord]
    """Every file of the folder except `model.json`, the model card and hidden files."""


def read_manifest(folder: Path) -> Manifest:
    """Reads the `model.json` of a folder.

    Raises:
        ModelError: it is missing or invalid; names the field.
    """
    file = folder / MANIFEST_FILE
    missing = f"{folder}: not a model folder: it has no {MANIFEST_FILE}; make one with `smalti import`"
    return parse_manifest(file, read_json_object(file, missing))


def write_manifest(folder: Path, fields: Mapping[str, Any]) -> Manifest:
    """Writes `model.json` into a folder atomically, and returns its content.

    Raises:
        ModelError: a field is invalid; names it. Nothing is written.
    """
    manifest = parse_manifest(folder / MANIFEST_FILE, fields)
    write_atomically(folder / MANIFEST_FILE, json.dumps(fields, indent=2, ensure_ascii=False) + "\n")
    return manifest


def check_name(name: str) -> None:
    """Raises `InvalidInputError` if this is not a valid name for a model."""
    if not re.fullmatch(NAME, name):
        raise InvalidInputError("name", f"{name!r} is not valid; use {_NAME_RULE}")


def clip_name(clip: str) -> ClipName:
    """Parses a CLIP given as "ViT-B-32:openai"; raises `InvalidInputError` for any other form."""
    name, _, pretrained = clip.partition(":")
    if not name or not pretrained:
        problem = f"{clip!r} is neither a folder nor NAME:TAG, such as ViT-B-32:openai"
        raise InvalidInputError("clip", problem)
    return ClipName(name=name, pretrained=pretrained)


def parse_manifest(file: Path, fields: Mapping[str, Any]) -> Manifest:
    """Checks the fields of a `model.json` and makes a manifest of them.

    Raises:
        ModelError: the format is unknown, or a field is invalid; names it.
    """
    if fields.get("format", FORMAT) != FORMAT:
        raise ModelError(
            f"{file}: format {json.dumps(fields['format'])} is unknown, this version of Smalti reads {FORMAT}; "
            "update Smalti"
        )
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        raise ModelError(f"{file}: {first_problem(error)}") from None
