"""Sending a file: to the gateway in pieces, or to the store itself, at a URL of the gateway."""

import io
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

from smalti.errors import InvalidInputError
from smalti.v1.file_pb2 import FileStart, UploadFileRequest

Source: TypeAlias = Path | bytes | BinaryIO
"""A user's file: its path, its content, or an open file that can be sought in."""
UPLOAD_SECONDS: Final = 6 * 3600.0
"""Time limit for sending a file."""
PIECE_BYTES: Final = 1 << 20
MIN_DIRECT_BYTES: Final = 16 << 20
"""Smaller files are sent to the gateway, in one call instead of three."""
MAX_DIRECT_BYTES: Final = 5 << 30
"""S3 takes no more at once."""
STORE_SECONDS: Final = 60.0
"""Time limit for each write to the store, and for its answer."""


def size_of(source: Source) -> int:
    """Returns the size of a user's file.

    Raises:
        InvalidInputError: the file cannot be read.
    """
    if isinstance(source, bytes):
        return len(source)
    if not isinstance(source, Path):
        return source.seek(0, io.SEEK_END)
    try:
        with source.open("rb") as file:
            return file.seek(0, io.SEEK_END)
    except OSError as error:
        raise InvalidInputError("file", f"{source}: cannot be read ({error.strerror})") from None


def goes_to_store(size: int) -> bool:
    """Returns whether a file of this size is sent to the store itself, if the store has URLs."""
    return MIN_DIRECT_BYTES <= size <= MAX_DIRECT_BYTES


def upload_requests(start: FileStart, source: Source) -> Callable[[], Iterator[UploadFileRequest]]:
    """Returns a function that begins the upload of a file from its start."""

    def requests() -> Iterator[UploadFileRequest]:
        yield UploadFileRequest(start=start)
        with _opened(source) as file:
            while piece := _read(file):
                yield UploadFileRequest(data=piece)

    return requests


def put_to_store(url: str, source: Source, size: int) -> bool:
    """Sends a file to a URL of the store; returns False if the store cannot be reached, or does not take it."""
    if not url.startswith(("http://", "https://")):
        return False
    try:
        with _opened(source) as file:
            request = urllib.request.Request(
                url,
                data=file,
                method="PUT",
                headers={"Content-Length": str(size), "Content-Type": "application/octet-stream"},
            )
            with urllib.request.urlopen(request, timeout=STORE_SECONDS):
                return True
    except (OSError, HTTPException):
        return False


def _read(file: BinaryIO) -> bytes:
    try:
        return file.read(PIECE_BYTES)
    except OSError as error:
        raise InvalidInputError("file", f"cannot be read ({error.strerror or error})") from None


def _opened(source: Source) -> AbstractContextManager[BinaryIO]:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, Path):
        return source.open("rb")
    source.seek(0)
    return nullcontext(source)
