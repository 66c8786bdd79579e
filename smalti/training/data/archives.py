"""Samples of webdataset tar files: the files of a sample are adjacent and share the stem of their names."""

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from smalti.errors import InvalidInputError
from smalti.foreign_text import reason_of

MAX_FILE: Final = 1 << 28
"""Largest picture file, in bytes; a larger one is not read."""
_MAC_FOLDER: Final = "__MACOSX"

Sample = dict[str, bytes]
"""The files of a sample by their endings, in lower case."""


def is_metadata(path: PurePosixPath | Path) -> bool:
    """Returns whether a file only describes another one: macOS puts `._fox.jpg` beside `fox.jpg`."""
    return path.name.startswith("._") or _MAC_FOLDER in path.parts


def read_samples(path: Path) -> Iterator[tuple[str, Sample]]:
    """Yields the samples of an archive with their names.

    The archive is read as a stream and never extracted, so no name in it reaches the file system.

    Raises:
        InvalidInputError: the archive is damaged from here on.
    """
    sample: Sample = {}
    current = ""
    damage: InvalidInputError | None = None
    try:
        for name, content in _files(path):
            location = PurePosixPath(name)
            if is_metadata(location):
                continue
            stem, _, ending = location.name.partition(".")
            key = (location.parent / stem).as_posix()
            if key != current and sample:
                yield current, sample
                sample = {}
            current = key
            sample[f".{ending.lower()}"] = content
    except InvalidInputError as error:
        damage = error
    if sample:
        yield current, sample
    if damage is not None:
        raise damage


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r|") as archive:
            for member in archive:
                # Otherwise tarfile would look for the next file far behind the end, for hours.
                if archive.offset > size + tarfile.BLOCKSIZE:
                    raise tarfile.ReadError(f"{member.name} is cut off")
                # A sparse file claims to be larger than its archive.
                file = archive.extractfile(member) if member.isreg() and member.size <= MAX_FILE else None
                if file is not None:
                    yield member.name, file.read()
    except Exception as error:  # Damaged headers make tarfile raise nearly anything.
        raise InvalidInputError("archive", reason_of(error)) from None
