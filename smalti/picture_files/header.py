"""What the header of a picture file says, read without decoding anything."""

import re
from dataclasses import dataclass
from typing import Final

from smalti.errors import InvalidInputError

MAX_FILE_BYTES: Final = 10 * 2**20
"""Largest file of an input picture."""
MAX_SIDE: Final = 4096
"""Largest width and height of an input picture, in pixels."""
MAX_PIXELS: Final = 90_000_000
"""Most pixels of a picture; more would not fit into the memory of a process that decodes it."""
MAX_SCANS: Final = 64
"""Most scans of a JPEG file. Encoders write about ten; each costs a pass over all pixels, and may have no content."""

MAX_PARTS: Final = 20_000
"""Most segments or chunks of a file, since they are counted in the event loop; ordinary files have about a thousand."""

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNK_FRAME: Final = 12
"""Bytes of a chunk beside its content: length, name and checksum."""
_JPEG_MARKER: Final = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_STARTS_OF_FRAME: Final = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH: Final = (0x01, 0xD8)


@dataclass(frozen=True, kw_only=True)
class Header:
    """The header of a picture file."""

    width: int
    height: int
    scans: int = 1
    """Passes over the picture in a JPEG file; counted up to one more than `MAX_SCANS`."""
    parts: int = 0
    """Segments or chunks of the file; counted up to one more than `MAX_PARTS`."""
    end: int | None = None
    """Position after the picture in the file; None for JPEG, to which cameras append further pictures, or a film."""


def check_header(content: bytes, field: str) -> None:
    """Checks what can be checked before a file is decoded.

    Args:
        content: the file.
        field: the path of the picture in the request, for errors.

    Raises:
        InvalidInputError: the file has another format than PNG, JPEG and WebP, is too large, has too many scans, or
            has data after its end.
    """
    if len(content) > MAX_FILE_BYTES:
        raise InvalidInputError(field, f"has {len(content)} bytes; at most {MAX_FILE_BYTES} are allowed")
    header = read_header(content)
    if header is None:
        raise InvalidInputError(field, "must be a picture in PNG, JPEG or WebP format")
    if max(header.width, header.height) > MAX_SIDE:
        raise InvalidInputError(
            field,
            f"has {header.width} x {header.height} pixels; at most {MAX_SIDE} x {MAX_SIDE} are allowed",
        )
    if header.scans > MAX_SCANS:
        raise InvalidInputError(
            field,
            f"has more than {MAX_SCANS} scans; save it as a baseline JPEG or a PNG",
        )
    if header.parts > MAX_PARTS:
        raise InvalidInputError(field, f"has more than {MAX_PARTS} parts; save the picture again")
    if header.end is not None and header.end < len(content):
        raise InvalidInputError(field, "has data after the end of the picture; save the picture again")


def read_header(content: bytes) -> Header | None:
    """Returns the header of a PNG, JPEG or WebP file; None if it is none of them."""
    if content.startswith(PNG_SIGNATURE):
        return _png(content)
    if content.startswith(b"\xff\xd8\xff"):
        return _jpeg(content)
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return _webp(content)
    return None


def _png(content: bytes) -> Header | None:
    if content[12:16] != b"IHDR" or len(content) < 24:
        return None
    end, parts = len(PNG_SIGNATURE), 0
    while end < len(content) and parts <= MAX_PARTS:
        parts += 1
        kind = content[end + 4 : end + 8]
        end += _PNG_CHUNK_FRAME + int.from_bytes(content[end : end + 4], "big")
        if kind == b"IEND":
            break
    return Header(
        width=int.from_bytes(content[16:20], "big"),
        height=int.from_bytes(content[20:24], "big"),
        parts=parts,
        end=end,
    )


def _jpeg(content: bytes) -> Header | None:
    """Walks the markers as libjpeg does, which skips everything else between them."""
    size: tuple[int, int] | None = None
    scans, parts, position = 0, 0, 2
    while scans <= MAX_SCANS and parts <= MAX_PARTS:
        match = _JPEG_MARKER.search(content, position)
        if match is None:
            break
        parts += 1
        marker, position = match[1][0], match.end()
        if marker == _END_OF_IMAGE:
            break
        if marker in _WITHOUT_LENGTH:
            continue
        if marker == _START_OF_SCAN:
            scans += 1
        if marker in _STARTS_OF_FRAME and size is None:
            frame = content[position + 3 : position + 7]
            size = int.from_bytes(frame[2:], "big"), int.from_bytes(frame[:2], "big")
        position += max(2, int.from_bytes(content[position : position + 2], "big"))
    return None if size is None else Header(width=size[0], height=size[1], scans=scans, parts=parts)


def _webp(content: bytes) -> Header | None:
    kind, data = content[12:16], content[20:]
    if len(data) < 10:
        return None
    if kind == b"VP8 ":
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (6, 8))
    elif kind == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (4, 7))
    else:
        return None
    size = int.from_bytes(content[4:8], "little")
    return Header(width=width, height=height, end=8 + size + size % 2)
