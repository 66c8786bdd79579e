"""Where the files of a batch are: a folder, or a prefix in an object store."""

import shutil
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from smalti.errors import MissingObjectError
from smalti.files import atomic_path, write_atomically
from smalti.storage import ObjectStore

TAR: Final = "application/x-tar"
PARQUET: Final = "application/vnd.apache.parquet"
JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"


class OutputPlace(Protocol):
    """Writes and reads files by their names, such as "manifest/00000.parquet".

    Writes are atomic and may be repeated.
    """

    def put(self, name: str, content: bytes, content_type: str = BYTES) -> None:
        """Writes or replaces a file."""
        ...

    def put_file(self, name: str, path: Path, content_type: str = BYTES) -> None:
        """Writes or replaces a file with the content of another one, which stays."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Opens a file to be read, seekable; raises `MissingObjectError` if there is none."""
        ...


class FolderPlace:
    """The files in a folder; an `OutputPlace`."""

    def __init__(self, folder: Path) -> None:
        """Creates the folder when the first file is written."""
        self.folder = folder

    def put(self, name: str, content: bytes, content_type: str = BYTES) -> None:  # noqa: D102
        write_atomically(self._made(name), content)

    def put_file(self, name: str, path: Path, content_type: str = BYTES) -> None:  # noqa: D102
        with (
            atomic_path(self._made(name)) as temporary,
            path.open("rb") as source,
            temporary.open("xb") as target,
        ):
            shutil.copyfileobj(source, target)

    def open(self, name: str) -> BinaryIO:  # noqa: D102
        try:
            return (self.folder / name).open("rb")
        except FileNotFoundError:
            raise MissingObjectError(name) from None

    def _made(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class StorePlace:
    """The files below a prefix in an object store; an `OutputPlace`."""

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        """Takes the store, and the prefix, which is empty or ends with "/"."""
        self.store = store
        self.prefix = prefix

    def put(self, name: str, content: bytes, content_type: str = BYTES) -> None:  # noqa: D102
        self.store.put(self.prefix + name, content, content_type=content_type)

    def put_file(self, name: str, path: Path, content_type: str = BYTES) -> None:  # noqa: D102
        self.store.put_file(self.prefix + name, path, content_type=content_type)

    def open(self, name: str) -> BinaryIO:  # noqa: D102
        return self.store.open_object(self.prefix + name)
