"""A digest of a data folder, by which a resumed run knows its data again."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from smalti.training.batches.sources import WORLD_FILE, find_world

_READ: Final = 2**20
"""Bytes that are read at the start and at the end of each file; a Parquet file has its table of contents at its end."""


def data_digest(folder: Path) -> str:
    """Returns the digest of a world or of Parquet shards: of names, sizes, and the start and end of each file.

    It does not depend on where the folder is. It is the same for all folders without data.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in _files(folder):
        with path.open("rb") as file:
            size = file.seek(0, 2)
            digest.update(f"{path.name}\0{size}\0".encode(errors="surrogateescape"))
            file.seek(0)
            digest.update(file.read(_READ))
            if size > _READ:
                file.seek(max(_READ, size - _READ))
                digest.update(file.read(_READ))
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    world = find_world(folder)
    if world is None:
        yield from sorted(folder.glob("*.parquet"))
    else:
        yield world / WORLD_FILE
        yield from sorted(world.glob("*.npz"))
