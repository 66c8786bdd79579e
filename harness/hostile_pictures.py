"""Picture files that mean harm."""

import io
import struct
import zlib

from PIL import Image


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


def png(width: int, height: int, pixels: bytes, *, bits: int = 8, colours: int = 0) -> bytes:
    """Returns a PNG file with a header and rows that need not fit together.

    Args:
        width: the width in the header.
        height: the height in the header.
        pixels: the rows, each after the number of its filter.
        bits: bits per channel.
        colours: 0 for grey, 2 for RGB.
    """
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
