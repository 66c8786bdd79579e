"""The content of a file, or a part of it, as an answer."""

import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse

from smalti.services.web.context import WebContext
from smalti.services.web.failures import HttpError
from smalti.v1.file_pb2 import File

_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


async def file_content(context: WebContext, file: File, asked: str | None) -> Response:
    """Returns the content of a file.

    Args:
        context: what requests share.
        file: the file.
        asked: the header `Range`. One that names several ranges, or has another form, is ignored.

    Raises:
        HttpError: the file has no such range.
    """
    first, end = 0, file.size_bytes
    found = _RANGE.fullmatch(asked or "")
    is_part = found is not None and found[0] != "bytes=-"
    if found is not None and is_part:
        first, end = _range(found[1], found[2], file.size_bytes)
    headers = {
        "accept-ranges": "bytes",
        "content-disposition": f"attachment; filename*=UTF-8''{quote(file.name, safe='')}",
        "content-length": str(end - first),
        "etag": f'"{file.sha256}"',
    }
    status = HTTPStatus.OK
    if is_part:
        status = HTTPStatus.PARTIAL_CONTENT
        headers["content-range"] = f"bytes {first}-{end - 1}/{file.size_bytes}"
    return StreamingResponse(
        _pieces(context, file, first, end), status, headers, media_type="application/octet-stream"
    )


async def _pieces(context: WebContext, file: File, first: int, end: int) -> AsyncIterator[bytes]:
    left = end - first
    async with aclosing(context.client.files.read(file, offset=first)) as pieces:
        async for piece in pieces:
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                return


def _range(first: str, last: str, size: int) -> tuple[int, int]:
    """Returns the first byte of a range, and the one after its last."""
    if first:
        begin, end = int(first), min(int(last) + 1, size) if last else size
    else:
        begin, end = max(0, size - int(last)), size
    if begin >= end:
        raise HttpError(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            f"the file has {size} bytes, and not the range that is asked for",
            reason="NO_SUCH_RANGE",
            field="range",
            **{"content-range": f"bytes */{size}"},
        )
    return begin, end
