"""Finding ids that occur twice among any number of rows, in little memory."""

import hashlib
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np

RECORD: Final = np.dtype([("high", "<u8"), ("low", "<u8"), ("place", "<u8")])
"""Of an id: 128 bits of its hash, so that no two ids ever have the same, and where it is."""
_PARTITIONS: Final = 64
_BUFFER: Final = 2**14
"""Bytes that are written to a partition together."""


class DuplicateFinder(ExitStack):
    """Collects ids in files of a temporary folder, each with the ids whose hashes begin alike.

    The folder is removed at the end of the block.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Creates the temporary folder.

        Args:
            folder: where; None for the system's place for temporary files.
        """
        super().__init__()
        self._folder = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="smalti-ids-", dir=folder)))
        self._buffers = [bytearray() for _ in range(_PARTITIONS)]

    def add(self, row_id: str, place: int) -> None:
        """Adds the id of a row, and where it is in the input."""
        digest = hashlib.blake2b(row_id.encode(), digest_size=16).digest()
        buffer = self._buffers[digest[0] % _PARTITIONS]
        buffer += digest
        buffer += place.to_bytes(8, "little")
        if len(buffer) >= _BUFFER:
            self._flush(digest[0] % _PARTITIONS)

    def first(self) -> tuple[int, int] | None:
        """Returns the places of two rows with the same id; of several, those whose second one comes first."""
        found = []
        for partition in range(_PARTITIONS):
            self._flush(partition)
            path = self._path(partition)
            if path.exists() and (pair := first_pair(np.fromfile(path, RECORD))) is not None:
                found.append(pair)
        return min(found, key=lambda pair: pair[1], default=None)

    def _flush(self, partition: int) -> None:
        if buffer := self._buffers[partition]:
            with self._path(partition).open("ab") as file:
                file.write(buffer)
            buffer.clear()

    def _path(self, partition: int) -> Path:
        return self._folder / f"{partition}.ids"


def first_pair(records: np.ndarray) -> tuple[int, int] | None:
    """Returns the places of the first two records with one digest."""
    records = records[np.lexsort((records["place"], records["low"], records["high"]))]
    before, after = records[:-1], records[1:]
    same = (before["high"] == after["high"]) & (before["low"] == after["low"])
    if not same.any():
        return None
    earliest = int(after["place"][same].argmin())
    return int(before["place"][same][earliest]), int(after["place"][same][earliest])
