"""The base of object stores that wrap another one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from smalti.storage.keys import ObjectRef
from smalti.storage.reading import open_reader
from smalti.storage.store import ObjectInfo, ObjectStore

Result = TypeVar("Result")


class WrappedStore(ABC):
    """Makes every call of an `ObjectStore` through one method."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @abstractmethod
    def _call(self, op: str, key: str, call: Callable[[], Result]) -> Result:
        """Makes a call.

        Args:
            op: the name of the method.
            key: the key of the object; empty if the call is about none, or several.
            call: calls the store.
        """

    def put(self, key: str, content: bytes, *, content_type: str = "application/octet-stream") -> ObjectRef:  # noqa: D102
        return self._call("put", key, lambda: self._store.put(key, content, content_type=content_type))

    def create(self, key: str, content: bytes, *, content_type: str = "application/octet-stream") -> bool:  # noqa: D102
        return self._call("create", key, lambda: self._store.create(key, content, content_type=content_type))

    def get(self, key: str, *, sha256: str | None = None) -> bytes:  # noqa: D102
        return self._call("get", key, lambda: self._store.get(key, sha256=sha256))

    def put_file(  # noqa: D102
        self, key: str, path: Path, *, content_type: str = "application/octet-stream"
    ) -> ObjectRef:
        return self._call("put_file", key, lambda: self._store.put_file(key, path, content_type=content_type))

    def copy(self, source: ObjectRef, key: str) -> ObjectRef:  # noqa: D102
        return self._call("copy", key, lambda: self._store.copy(source, key))

    def get_file(self, key: str, path: Path, *, sha256: str | None = None) -> None:  # noqa: D102
        self._call("get_file", key, lambda: self._store.get_file(key, path, sha256=sha256))

    def read(self, key: str, start: int, length: int) -> bytes:  # noqa: D102
        return self._call("read", key, lambda: self._store.read(key, start, length))

    def open_object(self, key: str) -> BinaryIO:
        """Opens an object whose parts are read through this store."""
        return open_reader(self, key)

    def stat(self, key: str) -> ObjectInfo | None:  # noqa: D102
        return self._call("stat", key, lambda: self._store.stat(key))

    def delete(self, *keys: str) -> None:  # noqa: D102
        self._call("delete", "", lambda: self._store.delete(*keys))

    def objects(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        """Lists objects directly: it makes many calls, between which the caller works."""
        return self._store.objects(prefix, after=after)

    def presigned_url(self, key: str, *, seconds: float) -> str:
        """Returns the store's URL; that needs no call."""
        return self._store.presigned_url(key, seconds=seconds)

    def presigned_upload(self, key: str, *, seconds: float) -> str:  # noqa: D102
        return self._call("presigned_upload", key, lambda: self._store.presigned_upload(key, seconds=seconds))

    def expire_after(self, days: int) -> bool:  # noqa: D102
        return self._call("expire_after", "", lambda: self._store.expire_after(days))

    def check(self) -> None:  # noqa: D102
        self._call("check", "", self._store.check)
