"""What arrives of batches and files: their versions, and content that resumes where it was."""

import hashlib
from collections.abc import Callable
from typing import Any, Final, Protocol

from smalti.client.jobs import Watch, has_ended
from smalti.client.retries import RetryBudget
from smalti.errors import RemoteError, SmaltiError, UnavailableError
from smalti.v1.batch_pb2 import (
    Batch,
    BatchFile,
    DownloadBatchFileRequest,
    WatchBatchRequest,
    WatchBatchResponse,
)
from smalti.v1.file_pb2 import DownloadFileRequest, File

CONTENT_SECONDS: Final = 300.0
"""Time until a download is renewed for what is missing."""


class BatchWatch(Watch[Batch]):
    """A watch over a batch; a `ResumableStream` of its versions."""

    def __init__(self, batch_id: str, since_version: int | None, budget: RetryBudget) -> None:
        """Has received nothing yet; the arguments are those of `Watch`."""
        super().__init__(f"batch {batch_id}", since_version, budget)
        self._batch_id = batch_id

    def request(self) -> WatchBatchRequest:  # noqa: D102
        return WatchBatchRequest(batch_id=self._batch_id, since_version=self.note_connection())

    def take(self, response: WatchBatchResponse) -> Batch | None:
        """Returns a version of the batch; None for one that is not new, and for a heartbeat."""
        self.note_message()
        if not response.HasField("batch"):
            return None
        return self.take_version(response.batch, ended=has_ended(response.batch))


class _Piece(Protocol):
    @property
    def data(self) -> bytes: ...


class ContentStream:
    """The content of a file; a `ResumableStream` of bytes."""

    def __init__(
        self,
        name: str,
        request_from: Callable[[int], Any],
        *,
        size: int,
        sha256: str,
        budget: RetryBudget,
    ) -> None:
        """Has received nothing yet.

        Args:
            name: what is downloaded, for errors.
            request_from: returns the request for the content from an offset on.
            size: the size of the file in bytes.
            sha256: the SHA-256 that the content must have; empty if it is not known.
            budget: how long to retry when the stream breaks.
        """
        self._name = name
        self._request_from = request_from
        self._size = size
        self._sha256 = sha256
        self._budget = budget
        self._digest = hashlib.sha256()
        self._offset = 0

    @property
    def done(self) -> bool:  # noqa: D102
        return self._offset >= self._size

    def request(self) -> Any:  # noqa: D102
        return self._request_from(self._offset)

    def take(self, piece: _Piece) -> bytes | None:
        """Returns the next bytes.

        Raises:
            RemoteError: these are the last, and the content is not what it must be.
        """
        self._budget.renew()
        data = piece.data
        self._offset += len(data)
        self._digest.update(data)
        is_wrong = self._sha256 and self._digest.hexdigest() != self._sha256
        if self.done and (self._offset > self._size or is_wrong):
            raise RemoteError(
                f"{self._name} arrives damaged: its SHA-256 is not {self._sha256}", code="DATA_LOSS"
            )
        return data or None

    def pause(self, error: SmaltiError | None) -> float:  # noqa: D102
        if error is None:
            error = UnavailableError(f"the server sent only a part of {self._name}")
        return self._budget.pause(error)


def file_content(file: File, offset: int, budget: RetryBudget) -> ContentStream:
    """Returns the content of a file from an offset on; only the whole is verified."""
    return ContentStream(
        f"file {file.id}",
        lambda position: DownloadFileRequest(file_id=file.id, offset=offset + position),
        size=file.size_bytes - offset,
        sha256="" if offset else file.sha256,
        budget=budget,
    )


def batch_file_content(batch_id: str, file: BatchFile, budget: RetryBudget) -> ContentStream:
    """Returns the content of a file of a batch."""
    return ContentStream(
        f"{file.name} of batch {batch_id}",
        lambda offset: DownloadBatchFileRequest(batch_id=batch_id, name=file.name, offset=offset),
        size=file.size_bytes,
        sha256=file.sha256,
        budget=budget,
    )
