"""Picture files that mean harm."""

import io
import struct
import zlib
from collections.abc import Sequence

from PIL import Image

from harness.captioned_pictures import encoded


def scan_bomb(scans: int, side: int = 4096) -> bytes:
    """Returns a progressive JPEG file with many scans that say nothing: 34 bytes each, and a pass over all pixels."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 128).save(buffer, "JPEG", progressive=True)
    plain = buffer.getvalue()
    start = plain.index(b"\xff\xda")
    length = struct.unpack(">H", plain[start + 2 : start + 4])[0]
    end = start + 2 + length
    while plain[end] != 0xFF or plain[end + 1] == 0:
        end += 1
    # A Huffman table with one symbol of one bit, which ends the band of 16384 blocks and as many as 14 bits say.
    table = b"\xff\xc4" + struct.pack(">H", 20) + bytes([0x10, 1, *[0] * 15, 0xE0])
    blocks, bits = (side // 8) ** 2, ""
    while blocks > 0:
        run = max(16384, min(blocks, 32767))
        bits += "0" + format(run - 16384, "014b")
        blocks -= run
    bits += "1" * (-len(bits) % 8)
    data = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)).replace(b"\xff", b"\xff\x00")
    scan = b"\xff\xda" + struct.pack(">H", 8) + bytes([1, 1, 0, 1, 63, 0]) + data
    return plain[:end] + table + scan * scans + b"\xff\xd9"


def png(
    width: int,
    height: int,
    pixels: bytes,
    *,
    bits: int = 8,
    colours: int = 0,
    extra: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """Returns a PNG file with a header and rows that need not fit together.

    Args:
        width: the width in the header.
        height: the height in the header.
        pixels: the rows, each after the number of its filter.
        bits: bits per channel.
        colours: 0 for grey, 2 for RGB.
        extra: kinds and contents of further chunks before the pixels.
    """
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    chunks = ((b"IHDR", header), *extra, (b"IDAT", zlib.compress(pixels, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in chunks)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Returns a chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with_chunks(image: Image.Image, *chunks: tuple[bytes, bytes]) -> bytes:
    """Returns a good PNG file with further chunks after its header."""
    plain = encoded(image, "PNG")
    header = 8 + 25
    return plain[:header] + b"".join(png_chunk(kind, data) for kind, data in chunks) + plain[header:]


def exif_block(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Returns a block of EXIF data.

    Args:
        entries: tag, type, count and value of each entry, which need not fit together.
    """
    place, table, rest = 8 + 2 + 12 * len(entries) + 4, struct.pack("<H", len(entries)), b""
    for tag, kind, count, value in entries:
        table += struct.pack("<HHI", tag, kind, count)
        if len(value) <= 4:
            table += value.ljust(4, b"\0")
        else:
            table += struct.pack("<I", place + len(rest))
            rest += value
    return b"Exif\0\0II*\0\x08\0\0\0" + table + bytes(4) + rest


def jpeg_with_exif(image: Image.Image, block: bytes) -> bytes:
    """Returns a good JPEG file with a block of EXIF data, whatever is in it."""
    plain = encoded(image, "JPEG")
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + plain[2:]
