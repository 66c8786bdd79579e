"""The files of a batch in the object store."""

import base64
import binascii
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from itertools import islice
from typing import Final

from smalti.batches import BatchKeys
from smalti.errors import BatchNotFoundError, InvalidInputError, MissingObjectError
from smalti.services.gateway.api.conversion import UrlOf, timestamp
from smalti.storage import ObjectInfo, ObjectStore, check_key
from smalti.v1.batch_pb2 import BatchFile, ListBatchFilesRequest, ListBatchFilesResponse

MAX_PAGE_SIZE: Final = 1000
PIECE_BYTES: Final = 2**20
"""Bytes of a message of DownloadBatchFile, at most."""


class BatchFiles:
    """Lists and reads the files of batches; every call blocks."""

    def __init__(self, store: ObjectStore, threads: Executor, url_of: UrlOf) -> None:
        """Takes what it needs.

        Args:
            store: the store.
            threads: asks the store about several files at the same time.
            url_of: returns the URL of an object, and when it expires.
        """
        self._store = store
        self._threads = threads
        self._url_of = url_of

    def page(self, request: ListBatchFilesRequest) -> ListBatchFilesResponse:
        """Returns a page of the files of a batch; raises `InvalidInputError`."""
        if request.page_size < 0:
            raise InvalidInputError("page_size", f"must not be negative, got {request.page_size}")
        size = min(request.page_size or MAX_PAGE_SIZE, MAX_PAGE_SIZE)
        prefix = BatchKeys(request.batch_id).prefix
        after = _parse_token(request.page_token)
        found = self._store.objects(prefix, after=f"{prefix}{after}" if after else "")
        infos = list(islice(found, size + 1))
        response = ListBatchFilesResponse()
        for info in self._threads.map(self._store.stat, [info.key for info in infos[:size]]):
            if info is not None:
                response.files.append(self._message(prefix, info))
        if len(infos) > size:
            response.next_page_token = _token(infos[size - 1].key.removeprefix(prefix))
        return response

    def read(self, batch_id: str, name: str, offset: int) -> Callable[[], bytes]:
        """Returns a function that reads the next bytes of a file, none at its end.

        Raises:
            BatchNotFoundError: there is no such file.
            InvalidInputError: the offset is negative.
        """
        if offset < 0:
            raise InvalidInputError("offset", f"must not be negative, got {offset}")
        key = f"{BatchKeys(batch_id).prefix}{name}"
        missing = BatchNotFoundError(
            f"{batch_id}/{name}"[:200], f"batch {batch_id} has no file {name[:200]!r}"
        )
        try:
            if not name or self._store.stat(check_key(key)) is None:
                raise missing
        except InvalidInputError:
            raise missing from None
        pieces = self._pieces(key, offset)

        def next_piece() -> bytes:
            try:
                return next(pieces, b"")
            except MissingObjectError:
                raise missing from None

        return next_piece

    def _pieces(self, key: str, offset: int) -> Iterator[bytes]:
        while piece := self._store.read(key, offset, PIECE_BYTES):
            yield piece
            offset += len(piece)

    def _message(self, prefix: str, info: ObjectInfo) -> BatchFile:
        url = self._url_of(info.key)
        return BatchFile(
            name=info.key.removeprefix(prefix),
            size_bytes=info.size,
            sha256=info.sha256 or "",
            object_key=info.key,
            url=url[0] if url else "",
            url_expire_time=timestamp(url[1]) if url else None,
        )


def _token(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _parse_token(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise InvalidInputError("page_token", "is damaged; start with the first page") from None
