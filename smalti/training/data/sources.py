"""Sources of a user's own pictures, of four kinds, read as one stream:

* a folder with captions beside the pictures: `fox.jpg` and `fox.txt`, one caption per line;
* a CSV or TSV file with the columns `image`, `caption` and optionally `url`;
* a JSONL file with the same keys; `caption` may be a list;
* webdataset tar files, one or a folder of them: `000.jpg` with `000.txt`, or `000.json` with the same keys.

Something missing or unreadable appears in the stream as a `Problem` and does not end it.
"""

import csv
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from smalti.errors import InvalidInputError

PICTURE_ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_CAPTION_ENDING = ".txt"
_RECORD_ENDING = ".json"
_ADDRESS_KEY = "url"
_MAX_FIELD = 1 << 20

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
        archives = sorted(source.glob("*.tar"))
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
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stems = {path.with_suffix("") for path in files if path.suffix.lower() in PICTURE_ENDINGS}
    for path in files:
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() in PICTURE_ENDINGS:
            text = path.with_suffix(_CAPTION_ENDING)
            if not text.is_file():
                yield Problem(name, NO_CAPTION)
                continue
            try:
                captions = _lines(text.read_text("utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                yield Problem(text.relative_to(folder).as_posix(), UNREADABLE, str(error))
                continue
            yield _entry(path, name, captions)
        elif path.suffix.lower() == _CAPTION_ENDING and path.with_suffix("") not in stems:
            yield Problem(name, NO_PICTURE)


def _read_table(path: Path) -> Iterator[Record]:
    csv.field_size_limit(_MAX_FIELD)
    try:
        # Invalid UTF-8 becomes surrogates, so that it costs one row and not the whole file.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            missing = {"image", "caption"} - set(rows.fieldnames or ())
            if missing:
                raise InvalidInputError("source", f"{path} must have a column {min(missing)!r}")
            for row in rows:
                name = f"{path.name}, line {rows.line_num}"
                texts = [text for text in row.values() if isinstance(text, str)]
                if all(_is_unicode(text) for text in texts):
                    yield _from_record(path.parent, name, row)
                else:
                    yield Problem(name, UNREADABLE, "not valid UTF-8")
    except (OSError, csv.Error) as error:
        yield Problem(path.name, UNREADABLE, str(error))


def _read_lines(path: Path) -> Iterator[Record]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                name = f"{path.name}, line {number}"
                if not line.strip():
                    continue
                try:
                    yield _from_record(path.parent, name, json.loads(line))
                except ValueError as error:
                    yield Problem(name, UNREADABLE, str(error))
    except OSError as error:
        yield Problem(path.name, UNREADABLE, str(error))


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _from_record(folder: Path, where: str, record: Any) -> Record:
    if not isinstance(record, dict):
        return Problem(where, UNREADABLE, "not a JSON object")
    image = record.get("image")
    if not isinstance(image, str) or not image:
        return Problem(where, NO_PICTURE)
    if not (folder / image).is_file():
        return Problem(image, NO_PICTURE)
    return _entry(folder / image, image, _captions(record), _address(record))


def _read_archive(path: Path) -> Iterator[Record]:
    """Reads a webdataset tar: the files of a sample are adjacent and share the stem of their names."""
    # Read as a stream and never extracted, so that no name in the archive reaches the file system.
    try:
        with tarfile.open(path, "r|") as archive:
            sample: dict[str, bytes] = {}
            current = ""
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is None:
                    continue
                location = PurePosixPath(member.name)
                stem, _, ending = location.name.partition(".")
                key = (location.parent / stem).as_posix()
                if key != current and sample:
                    yield _from_sample(f"{path.name}: {current}", sample)
                    sample = {}
                current = key
                sample[f".{ending.lower()}"] = file.read()
            if sample:
                yield _from_sample(f"{path.name}: {current}", sample)
    except (OSError, tarfile.TarError, EOFError) as error:
        yield Problem(path.name, UNREADABLE, str(error))


def _from_sample(name: str, sample: dict[str, bytes]) -> Record:
    picture = next((ending for ending in sorted(sample) if ending in PICTURE_ENDINGS), None)
    if picture is None:
        return Problem(name, NO_PICTURE)
    try:
        record = json.loads(sample.get(_RECORD_ENDING, b"{}"))
        record = record if isinstance(record, dict) else {}
        captions = _lines(sample.get(_CAPTION_ENDING, b"").decode("utf-8")) or _captions(record)
    except ValueError as error:
        return Problem(name, UNREADABLE, str(error))
    if not captions:
        return Problem(name, NO_CAPTION)
    return Entry(name, sample[picture], captions, _address(record))


def _entry(path: Path, name: str, captions: tuple[str, ...], address: str | None = None) -> Record:
    if not captions:
        return Problem(name, NO_CAPTION)
    try:
        return Entry(name, path.read_bytes(), captions, address)
    except OSError as error:
        return Problem(name, UNREADABLE, str(error))


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _captions(record: dict[str, Any]) -> tuple[str, ...]:
    value = record.get("caption")
    values = value if isinstance(value, list) else [value]
    return tuple(text for text in values if isinstance(text, str) and text.strip())


def _address(record: dict[str, Any]) -> str | None:
    value = record.get(_ADDRESS_KEY)
    return value if isinstance(value, str) and value else None
