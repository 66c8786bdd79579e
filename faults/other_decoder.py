"""A decoder that packs its PNG files differently, as one with another zlib would: `python -m faults.other_decoder`."""

import struct
import sys
import zlib
from typing import Any

from PIL import Image

from smalti.messages import Stage
from smalti.pictures import Drawing, png_bytes
from smalti.service import Process, Service, run

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def repacked(content: bytes) -> bytes:
    """Returns a PNG with the same pixels and texts in other bytes: its rows are compressed less."""
    packed = bytearray()
    out = bytearray(_SIGNATURE)
    start = len(_SIGNATURE)
    while start < len(content):
        length, kind = struct.unpack(">I4s", content[start : start + 8])
        body = content[start + 8 : start + 8 + length]
        start += length + 12
        if kind == b"IDAT":
            packed += body
            continue
        if kind == b"IEND":
            out += _chunk(b"IDAT", zlib.compress(zlib.decompress(packed), 1))
        out += _chunk(kind, body)
    return bytes(out)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _build(process: Process) -> Service:
    from smalti.services.decoder import handler, service

    def other_bytes(image: Image.Image, drawing: Drawing) -> bytes:
        return repacked(png_bytes(image, drawing))

    module: Any = handler
    module.png_bytes = other_bytes  # The one thing in which it differs.
    return service.build(process)


if __name__ == "__main__":
    sys.exit(run("decoder", Stage.DECODE, _build))
