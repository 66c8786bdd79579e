"""Objects that are read in parts, as files are: for what is too large for memory."""

import io
from typing import BinaryIO, Final, Protocol

from smalti.errors import MissingObjectError
from smalti.storage.store import ObjectInfo

BUFFER_BYTES: Final = 2**20
"""Bytes that are read ahead."""


class RangeReader(Protocol):
    """The part of an object store that reading in parts needs."""

    def stat(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore`."""
        ...

    def read(self, key: str, start: int, length: int) -> bytes:
        """See `ObjectStore`."""
        ...


class _ObjectFile(io.RawIOBase):
    """An object as a file without a buffer."""

    def __init__(self, store: RangeReader, key: str, size: int) -> None:
        super().__init__()
        self._store = store
        self._key = key
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = max(0, min(len(buffer), self._size - self._position))
        if length == 0:
            return 0
        content = self._store.read(self._key, self._position, length)
        if not content:
            # Otherwise a reader would take it for the end of a shorter file.
            raise MissingObjectError(self._key)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def open_reader(store: RangeReader, key: str) -> BinaryIO:
    """Opens an object for reading; see `ObjectStore.open_object`."""
    info = store.stat(key)
    if info is None:
        raise MissingObjectError(key)
    return io.BufferedReader(_ObjectFile(store, key, info.size), BUFFER_BYTES)
