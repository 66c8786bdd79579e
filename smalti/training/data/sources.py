"""Sources of a user's own pictures, of four kinds, read as one stream:

* a folder with captions beside the pictures: `fox.jpg` and `fox.txt`, one caption per line;
* a CSV or TSV file with the columns `image`, `caption` and optionally `url`;
* a JSONL file with the same keys; `caption` may be a list;
* webdataset tar files, one or a folder of them: `000.jpg` with `000.txt`, or `000.json` with the same keys. The
  pictures of a batch are such files, with their captions as `prompt`.

Something missing or unreadable appears in the stream as a `Problem` and does not end it. Endings of names may be in
capitals. Names are as `printable` shows them, so that every report can hold them.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smalti.errors import InvalidInputError
from smalti.foreign_text import check_text, decode_text, parse_json, printable, reason_of
from smalti.training.data.archives import MAX_FILE, Sample, is_metadata, read_samples
from smalti.training.data.tables import MAX_LINE, read_table

PICTURE_ENDINGS = frozenset(
    {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
_CAPTION_ENDING = ".txt"
_RECORD_ENDING = ".json"
_ADDRESS_KEY = "url"
_CAPTION_KEY = "caption"
_PROMPT_KEY = "prompt"
"""The caption of a picture that was drawn in a batch."""

NO_CAPTION = "picture without a caption"
NO_PICTURE = "caption without a picture"
UNREADABLE = "cannot be read"


@dataclass(frozen=True)
class Problem:
    """A part of a source that cannot be used."""

    name: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Entry:
    """An encoded picture with its captions."""

    name: str
    content: bytes
    captions: tuple[str, ...]
    address: str | None = None


Record = Entry | Problem


def read_source(source: Path) -> Iterator[Record]:
    """Yields the pictures of a source, in an order that depends on names alone.

    Raises:
        InvalidInputError: the source does not exist, or is of no known kind.
    """
    if source.is_dir():
        if not os.access(source, os.R_OK | os.X_OK):
            raise InvalidInputError("source", f"{source} cannot be read: the permission is missing")
        archives = sorted(
            path for path in source.iterdir() if path.suffix.lower() == ".tar" and not is_metadata(path)
        )
        return _chain(archives, _read_archive) if archives else _read_folder(source)
    if not source.is_file():
        raise InvalidInputError("source", f"{source} does not exist; give a file or a folder")
    readers: dict[str, Callable[[Path], Iterator[Record]]] = {
        ".csv": _read_table,
        ".tsv": _read_table,
        ".jsonl": _read_lines,
        ".tar": _read_archive,
    }
    if source.suffix.lower() not in readers:
        raise InvalidInputError("source", f"{source} must be a folder or end in .csv, .tsv, .jsonl or .tar")
    return readers[source.suffix.lower()](source)


def _chain(paths: list[Path], read: Callable[[Path], Iterator[Record]]) -> Iterator[Record]:
    for path in paths:
        yield from read(path)


def _read_folder(folder: Path) -> Iterator[Record]:
    files = sorted(path for path in folder.rglob("*") if _is_file(path) and not is_metadata(path))
    pictures = {path.with_suffix("") for path in files if path.suffix.lower() in PICTURE_ENDINGS}
    texts = {path.with_suffix(""): path for path in reversed(files) if path.suffix.lower() == _CAPTION_ENDING}
    for path in files:
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() in PICTURE_ENDINGS:
            text = texts.get(path.with_suffix(""))
            if text is None:
                yield Problem(printable(name), NO_CAPTION)
                continue
            try:
                captions = _lines(decode_text(_load(text, MAX_LINE), "the file"))
            except InvalidInputError as error:
                yield Problem(printable(text.relative_to(folder).as_posix()), UNREADABLE, error.problem)
                continue
            yield _entry(path, name, captions)
        elif path.suffix.lower() == _CAPTION_ENDING and path.with_suffix("") not in pictures:
            yield Problem(printable(name), NO_PICTURE)


def _read_table(path: Path) -> Iterator[Record]:
    def names_picture(fields: dict[str, str]) -> bool:
        image = fields.get("image", "")
        return bool(image) and _is_file(path.parent / image)

    try:
        for row in read_table(path, ("image", "caption"), names_picture):
            name = f"{printable(path.name)}, line {row.line}"
            if row.problem:
                yield Problem(name, UNREADABLE, row.problem)
            else:
                yield _from_record(path.parent, name, row.fields)
    except OSError as error:
        yield Problem(printable(path.name), UNREADABLE, reason_of(error))


def _read_lines(path: Path) -> Iterator[Record]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(4 * MAX_LINE):
                number += 1
                name = f"{printable(path.name)}, line {number}"
                if len(line) == 4 * MAX_LINE and not line.endswith(b"\n"):
                    yield Problem(name, UNREADABLE, f"longer than {4 * MAX_LINE} bytes")
                    while (line := file.readline(MAX_LINE)) and not line.endswith(b"\n"):
                        pass
                elif line.strip():
                    try:
                        yield _from_record(path.parent, name, parse_json(line, "the line"))
                    except InvalidInputError as error:
                        yield Problem(name, UNREADABLE, error.problem)
    except OSError as error:
        yield Problem(printable(path.name), UNREADABLE, reason_of(error))


def _from_record(folder: Path, where: str, record: Any) -> Record:
    if not isinstance(record, dict):
        return Problem(where, UNREADABLE, "not a JSON object")
    image = record.get("image")
    if not isinstance(image, str) or not image:
        return Problem(where, NO_PICTURE)
    if not _is_file(folder / image):
        return Problem(printable(image), NO_PICTURE)
    return _entry(folder / image, image, _captions(record), _address(record))


def _read_archive(path: Path) -> Iterator[Record]:
    try:
        for name, sample in read_samples(path):
            yield _from_sample(printable(f"{path.name}: {name}"), sample)
    except InvalidInputError as error:
        yield Problem(printable(path.name), UNREADABLE, error.problem)


def _from_sample(name: str, sample: Sample) -> Record:
    picture = next((ending for ending in sorted(sample) if ending in PICTURE_ENDINGS), None)
    if picture is None:
        return Problem(name, NO_PICTURE)
    try:
        record = parse_json(sample.get(_RECORD_ENDING, b"{}"), "the record")
        record = record if isinstance(record, dict) else {}
        text = decode_text(sample.get(_CAPTION_ENDING, b""), "the caption")
        captions = _lines(text) or _captions(record) or _captions(record, _PROMPT_KEY)
    except InvalidInputError as error:
        return Problem(name, UNREADABLE, error.problem)
    return _made(name, sample[picture], captions, _address(record))


def _entry(path: Path, name: str, captions: tuple[str, ...], address: str | None = None) -> Record:
    try:
        return _made(printable(name), _load(path, MAX_FILE), captions, address)
    except InvalidInputError as error:
        return Problem(printable(name), UNREADABLE, error.problem)


def _made(name: str, content: bytes, captions: tuple[str, ...], address: str | None) -> Record:
    """Returns an entry whose texts are valid, or what is wrong with it."""
    if not captions:
        return Problem(name, NO_CAPTION)
    try:
        for caption in captions:
            check_text(caption, "the caption")
        check_text(address or "", "the address")
    except InvalidInputError as error:
        return Problem(name, UNREADABLE, str(error))
    return Entry(name, content, captions, address)


def _load(path: Path, most: int) -> bytes:
    """Loads a file of at most so many bytes; raises `InvalidInputError`."""
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise InvalidInputError("file", reason_of(error)) from None
    if len(content) > most:
        raise InvalidInputError("file", f"has more than {most} bytes")
    return content


def _is_file(path: Path) -> bool:
    """Returns whether a file is there, under any name that a table may give, and may be looked at."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _captions(record: dict[str, Any], key: str = _CAPTION_KEY) -> tuple[str, ...]:
    value = record.get(key)
    values = value if isinstance(value, list) else [value]
    return tuple(text for text in values if isinstance(text, str) and text.strip())


def _address(record: dict[str, Any]) -> str | None:
    value = record.get(_ADDRESS_KEY)
    return value if isinstance(value, str) and value else None
