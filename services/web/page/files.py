"""The files of the page, in memory.

The document is asked for again at each visit. All other files have the hash of all files in their paths, so browsers
keep them for good, and the modules of two versions never mix.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final, Self

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

FOLDER: Final = Path(__file__).parent / "static"
DOCUMENT: Final = "index.html"
VERSION: Final = "VERSION"
"""Stands for the hash of the files in the document."""
WALL: Final = "WALL"
"""Stands in the document for what the wall shows: `on`, `prompts`, or nothing without a wall."""
HASH_LENGTH: Final = 16
MEDIA_TYPES: Final[Mapping[str, str]] = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
ASK_AGAIN: Final = "no-cache"
KEEP: Final = "public, max-age=31536000, immutable"


@dataclass(frozen=True, kw_only=True)
class PageFile:
    """A file as it is served."""

    content: bytes
    media_type: str
    cache_control: str
    etag: str
    """A weak validator, since compression changes the bytes."""


class PageFiles:
    """An ASGI application that serves the files, and answers 404 to everything else."""

    def __init__(self, files: Mapping[str, PageFile]) -> None:
        """Serves files by their paths."""
        self.files = files

    @classmethod
    def load(cls, folder: Path, *, wall: str) -> Self:
        """Reads the files of a folder; `wall` is what the document says about the wall."""
        contents = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        version = _hash(b"".join(name.encode() + b"\0" + content for name, content in contents.items()))
        document = contents.pop(DOCUMENT).replace(VERSION.encode(), version.encode())
        document = document.replace(WALL.encode(), wall.encode())
        files = {f"/page/{version}/{name}": _file(name, content, KEEP) for name, content in contents.items()}
        index = _file(DOCUMENT, document, ASK_AGAIN)
        return cls({"/": index, f"/{DOCUMENT}": index, **files})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        file = self.files.get(scope["path"])
        if file is None:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(HTTPStatus.METHOD_NOT_ALLOWED, headers={"allow": "GET, HEAD"})
        headers = {
            "cache-control": file.cache_control,
            "content-security-policy": POLICY,
            "etag": file.etag,
        }
        if file.etag in Headers(scope=scope).get("if-none-match", ""):
            response = Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        else:
            response = Response(file.content, headers=headers, media_type=file.media_type)
        await response(scope, receive, send)


def _file(name: str, content: bytes, cache_control: str) -> PageFile:
    media_type = MEDIA_TYPES[Path(name).suffix]
    return PageFile(
        content=content, media_type=media_type, cache_control=cache_control, etag=f'W/"{_hash(content)}"'
    )


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:HASH_LENGTH]
