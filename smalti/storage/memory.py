"""An object store in memory, for tests."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from smalti.errors import MissingObjectError
from smalti.files import write_atomically
from smalti.storage.keys import ObjectRef, check_key
from smalti.storage.reading import open_reader
from smalti.storage.store import ObjectInfo, digest, using_file, verified


class MemoryStore:
    """Keeps objects in a dictionary; thread-safe."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[bytes, ObjectInfo]] = {}
        """Content and description of each object by key; a test may damage them."""
        self._lock = threading.Lock()

    def put(self, key: str, content: bytes, *, content_type: str = "application/octet-stream") -> ObjectRef:  # noqa: D102
        ref = ObjectRef(key=check_key(key), sha256=digest(content))
        with self._lock:
            self.entries[key] = (content, ObjectInfo(key, len(content), datetime.now(UTC), ref.sha256))
        return ref

    def create(self, key: str, content: bytes, *, content_type: str = "application/octet-stream") -> bool:  # noqa: D102
        info = ObjectInfo(check_key(key), len(content), datetime.now(UTC), digest(content))
        with self._lock:
            return self.entries.setdefault(key, (content, info))[1] is info

    def put_file(  # noqa: D102
        self, key: str, path: Path, *, content_type: str = "application/octet-stream"
    ) -> ObjectRef:
        with using_file(path):
            content = path.read_bytes()
        return self.put(key, content, content_type=content_type)

    def copy(self, source: ObjectRef, key: str) -> ObjectRef:  # noqa: D102
        return self.put(key, self.get(source.key, sha256=source.sha256))

    def get(self, key: str, *, sha256: str | None = None) -> bytes:  # noqa: D102
        content, info = self._entry(key)
        return verified(key, content, info.sha256, sha256)

    def get_file(self, key: str, path: Path, *, sha256: str | None = None) -> None:  # noqa: D102
        content = self.get(key, sha256=sha256)
        with using_file(path):
            write_atomically(path, content)

    def read(self, key: str, start: int, length: int) -> bytes:  # noqa: D102
        return self._entry(key)[0][start : start + length]

    def open_object(self, key: str) -> BinaryIO:  # noqa: D102
        return open_reader(self, key)

    def stat(self, key: str) -> ObjectInfo | None:  # noqa: D102
        with self._lock:
            entry = self.entries.get(check_key(key))
        return entry and entry[1]

    def delete(self, *keys: str) -> None:  # noqa: D102
        with self._lock:
            for key in keys:
                self.entries.pop(check_key(key), None)

    def objects(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:  # noqa: D102
        with self._lock:
            found = sorted(
                (key, info)
                for key, (_, info) in self.entries.items()
                if key.startswith(prefix) and key > after
            )
        yield from (info for _, info in found)

    def presigned_url(self, key: str, *, seconds: float) -> str:
        """Returns a `memory:` URL, which nothing can read."""
        return f"memory:///{check_key(key)}"

    def presigned_upload(self, key: str, *, seconds: float) -> str:
        """Returns nothing: nobody else can write to this memory."""
        check_key(key)
        return ""

    def expire_after(self, days: int) -> bool:
        """Returns False: the store does not expire objects."""
        return False

    def check(self) -> None:
        """Does nothing: memory is always available."""

    def _entry(self, key: str) -> tuple[bytes, ObjectInfo]:
        with self._lock:
            entry = self.entries.get(check_key(key))
        if entry is None:
            raise MissingObjectError(key)
        return entry
