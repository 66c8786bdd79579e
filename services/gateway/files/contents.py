"""The contents of files: from clients to the object store by way of a temporary file, and back."""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from smalti.errors import DamagedObjectError, InvalidInputError, UnavailableError, WrongStateError
from smalti.services.gateway.database.tables import StoredFile
from smalti.storage import ObjectRef, ObjectStore, content_key

FILES: Final = "files/"
"""The prefix of the objects of all files."""
PIECE_BYTES: Final = 2**20
"""Bytes that are read, and sent, at a time."""


class FileKeys:
    """The keys of a file in the object store."""

    def __init__(self, file_id: str) -> None:
        """Creates the keys of a file."""
        self.folder = f"{FILES}{file_id}/"
        """The prefix of its objects."""
        self.upload = f"{self.folder}upload.bin"
        """What a client has sent to the upload URL. It may change for as long as the URL is valid."""

    def content(self, sha256: str) -> str:
        """Returns the key of the content."""
        return content_key(f"{self.folder}content.bin", sha256)


class Incoming:
    """Content that arrives, in a temporary file that is deleted at the end of the `with` block."""

    def __init__(self, limit: int, remedy: str) -> None:
        """Opens the file.

        Args:
            limit: bytes that it may have.
            remedy: what a client does whose content is larger.

        Raises:
            UnavailableError: the folder for temporary files cannot be used.
        """
        self._limit = limit
        self._remedy = remedy
        self._digest = hashlib.sha256()
        self.size = 0
        """Bytes that have arrived."""
        try:
            self._file: IO[bytes] = tempfile.NamedTemporaryFile(prefix="smalti-file-")  # noqa: SIM115 - Closed by `close`.
        except OSError as error:
            raise _no_room(error) from error

    @property
    def sha256(self) -> str:
        """SHA-256 of what has arrived."""
        return self._digest.hexdigest()

    @property
    def path(self) -> Path:
        """The file; complete after `flush`."""
        return Path(self._file.name)

    def write(self, data: bytes) -> None:
        """Adds bytes.

        Raises:
            InvalidInputError: the content is too large.
            UnavailableError: the disk is full.
        """
        self.size += len(data)
        if self.size > self._limit:
            raise InvalidInputError("data", f"must have at most {self._limit} bytes; {self._remedy}")
        self._digest.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise _no_room(error) from error

    def flush(self) -> None:
        """Completes the file; raises `UnavailableError` if the disk is full."""
        try:
            self._file.flush()
        except OSError as error:
            raise _no_room(error) from error

    def close(self) -> None:
        """Deletes the file."""
        try:
            self._file.close()
        except OSError:  # What could not be written before; the file is gone nevertheless.
            Path(self._file.name).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FileContents:
    """The contents of files in the object store; thread-safe, and every call blocks."""

    def __init__(self, store: ObjectStore) -> None:
        """Takes the store."""
        self._store = store

    def put(self, file_id: str, incoming: Incoming) -> ObjectRef:
        """Writes the content of a file to the store; raises `StoreUnavailableError`."""
        incoming.flush()
        key = FileKeys(file_id).content(incoming.sha256)
        return self._store.put_file(key, incoming.path)

    def collect_upload(self, file_id: str, incoming: Incoming) -> None:
        """Reads what a client has sent to the upload URL.

        Raises:
            WrongStateError: nothing was sent, or it is too large.
            StoreUnavailableError: the store does not answer.
        """
        key = FileKeys(file_id).upload
        if self._store.stat(key) is None:
            raise WrongStateError(f"file {file_id} has no content yet; send it to the upload URL first")
        try:
            self._copy(key, incoming)
        except InvalidInputError as error:
            raise WrongStateError(f"the content of file {file_id} {error.problem}") from None

    def collect(self, rows: Iterable[StoredFile], incoming: Incoming) -> None:
        """Reads the contents of files, one after the other.

        Raises:
            DamagedObjectError: one of them is not what was uploaded.
            InvalidInputError: together they are too large.
            StoreUnavailableError: the store does not answer.
        """
        for row in rows:
            if self._copy(row.key or "", incoming) != row.sha256:
                raise DamagedObjectError(row.key or "", "its content is not what was uploaded")

    def pieces(self, row: StoredFile, offset: int = 0) -> Iterator[bytes]:
        """Yields the content of a file from an offset on.

        Raises:
            MissingObjectError: the content was deleted.
            DamagedObjectError: all of it was read, and it is not what was uploaded.
            StoreUnavailableError: the store does not answer.
        """
        key, digest, position = row.key or "", hashlib.sha256(), offset
        while position < row.size:
            data = self._store.read(key, position, min(PIECE_BYTES, row.size - position))
            if not data:
                break
            digest.update(data)
            position += len(data)
            yield data
        if position < row.size or (offset == 0 and digest.hexdigest() != row.sha256):
            raise DamagedObjectError(key, "its content is not what was uploaded")

    def upload_url(self, file_id: str, seconds: float) -> str:
        """Returns the URL to which the content may be sent; empty if the store has none."""
        url = self._store.presigned_upload(FileKeys(file_id).upload, seconds=seconds)
        return url if url.startswith(("http://", "https://")) else ""

    def delete(self, file_id: str) -> None:
        """Deletes all objects of a file; raises `StoreUnavailableError`."""
        keys = FileKeys(file_id)
        self._store.delete(keys.upload, *(each.key for each in self._store.objects(keys.folder)))

    def delete_upload(self, file_id: str) -> None:
        """Deletes what was sent to the upload URL; raises `StoreUnavailableError`."""
        self._store.delete(FileKeys(file_id).upload)

    def _copy(self, key: str, incoming: Incoming) -> str:
        """Appends an object; returns its SHA-256."""
        digest = hashlib.sha256()
        with self._store.open_object(key) as source:
            while data := source.read(PIECE_BYTES):
                digest.update(data)
                incoming.write(data)
        return digest.hexdigest()


def _no_room(error: OSError) -> UnavailableError:
    return UnavailableError(
        f"the gateway cannot keep the file while it arrives: {error.strerror}; try again", 30.0
    )
