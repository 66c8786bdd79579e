"""Pictures as the world has them: every mode of Pillow, and good pixels beside damaged metadata."""

import io
import os
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from harness.hostile_pictures import exif_block, jpeg_with_exif, png, png_with_chunks
from smalti.errors import InvalidInputError
from smalti.pictures import read_image
from smalti.training.data.pictures import UnreadablePictureError, decode

RAMP = np.tile(np.linspace(0, 1, 64), (8, 1))
SHOWN = RAMP[0, ::9] * 255


def file(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(values: np.ndarray, kind: type) -> Image.Image:
    return Image.fromarray(values.astype(kind))


def ramp(mode: str) -> Image.Image:
    image = grey(RAMP * 255, np.uint8)
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(image.convert("RGB"), *profiles, outputMode="LAB")
        assert converted
        return converted
    if mode in ("P", "PA"):
        return image.quantize(64).convert(mode)
    return image.convert(mode)


def row(image: Image.Image) -> np.ndarray:
    return np.asarray(image)[4, ::9].mean(-1)


EIGHT_BIT = [
    ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("P", "GIF"), ("L", "BMP"),
    ("CMYK", "JPEG"), ("YCbCr", "JPEG"), ("L", "TIFF"), ("P", "TIFF"), ("PA", "TIFF"), ("RGBA", "TIFF"),
    ("CMYK", "TIFF"), ("YCbCr", "TIFF"), ("LAB", "TIFF"), ("L", "PPM"), ("RGB", "WEBP"), ("RGB", "AVIF"),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "kind"), EIGHT_BIT)
def test_modes_of_eight_bits(mode: str, kind: str) -> None:
    assert np.abs(row(decode(file(ramp(mode), kind))) - SHOWN).max() < 6


def tiff(image: Image.Image, **tags: float) -> bytes:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        number = {"smallest": 340, "largest": 341, "bits": 258, "photometric": 262}[name]
        info[number] = value
        info.tagtype[number] = 12 if number >= 340 else 3
    return file(image, "TIFF", tiffinfo=info)


def twelve_bits() -> bytes:
    """Returns a grey TIFF of twelve bits, two numbers in three bytes, which Pillow reads but does not write."""
    values = (RAMP * 4095).astype(int)
    data = bytearray()
    for first, second in values.reshape(-1, 2).tolist():
        data += bytes([first >> 4, (first & 15) << 4 | second >> 8, second & 255])
    tags = {256: 64, 257: 8, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: len(data)}
    table = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()
    )
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + bytes(data) + table + bytes(4)


@pytest.mark.parametrize(
    "content",
    [
        file(grey(RAMP * 65535, np.uint16), "PNG"),
        file(grey(RAMP * 65535, np.uint16), "TIFF"),
        file(Image.frombytes("I;16B", (64, 8), (RAMP * 65535).astype(">u2").tobytes()), "TIFF"),
        file(grey(RAMP * 65535, np.int32), "PPM"),
        file(grey(RAMP, np.float32), "TIFF"),
        tiff(grey(RAMP * 200 - 100, np.float32), smallest=-100.0, largest=100.0),
        tiff(grey(RAMP * 5000, np.int32), smallest=0.0, largest=5000.0),
        twelve_bits(),
    ],
)
def test_more_bits_are_scaled_by_their_range(content: bytes) -> None:
    assert np.abs(row(decode(content)) - SHOWN).max() < 2


@pytest.mark.parametrize(
    ("values", "kind", "problem"),
    [
        (RAMP * (2**31 - 1), np.int32, "has signed or 32-bit integers, and does not say their range"),
        (RAMP * 255, np.float32, "has floating-point numbers beyond 0 to 1, and does not say their range"),
        (RAMP - 0.5, np.float32, "has floating-point numbers beyond 0 to 1"),
    ],
)
def test_numbers_of_an_unknown_range_are_refused(values: np.ndarray, kind: type, problem: str) -> None:
    with pytest.raises(UnreadablePictureError, match=problem):
        decode(file(grey(values, kind), "TIFF"))


def test_transparency_of_every_kind_becomes_white() -> None:
    black = np.zeros((4, 4), np.uint8)
    transparent = np.array([[0] * 4] * 2 + [[255] * 4] * 2, np.uint8)
    palette = Image.fromarray(black).convert("P")
    two_rows_of_seven = b"".join(b"\0" + (b"\0\7" if line < 2 else b"\0\0") * 4 for line in range(4))
    for content in (
        file(Image.fromarray(np.stack([black, black, black, transparent], -1)), "PNG"),
        file(Image.fromarray(np.stack([black, transparent], -1), "LA"), "PNG"),
        file(
            Image.fromarray(np.where(transparent > 0, 9, 0).astype(np.uint8)).convert("P"),
            "PNG",
            transparency=0,
        ),
        png(4, 4, two_rows_of_seven, bits=16, extra=((b"tRNS", b"\0\7"),)),
    ):
        found = np.asarray(decode(content))
        assert found[0, 0].tolist() == [255] * 3
        assert found[3, 3].max() < 10
    assert decode(file(palette, "PNG")).getpixel((0, 0)) == (0, 0, 0)


DAMAGED: dict[str, tuple[int, int, int, bytes]] = {
    "unit of resolution 70000": (0x0128, 4, 1, struct.pack("<I", 70000)),
    "resolution as bytes": (0x011A, 7, 1, b"72"),
    "software as a fraction": (0x0131, 5, 1, struct.pack("<II", 1, 1)),
    "exposure -2/0": (0x9204, 10, 1, struct.pack("<ii", -2, 0)),
    "offset of strips as a float": (0x0117, 12, 1, struct.pack("<d", 1.5)),
    "value far behind the end": (0x0131, 2, 2**31, b"\xff\xff\xff\x7f"),
    "type that is not known": (0x0131, 99, 1, b"1"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_exif_beside_an_orientation(name: str) -> None:
    upright = (0x0112, 3, 1, struct.pack("<H", 6))
    block = exif_block(upright, DAMAGED[name])
    content = jpeg_with_exif(Image.new("RGB", (64, 32), "red"), block)
    for read in (lambda: read_image(content, "image"), lambda: decode(content)):
        assert read().size == (32, 64)
    tags = png_with_chunks(Image.new("RGB", (64, 32), "red"), (b"eXIf", block[6:]))
    assert read_image(tags, "image").size == (32, 64)


def test_metadata_that_cannot_be_read_are_left_out() -> None:
    image = Image.new("RGB", (64, 32), "red")
    bomb = zlib.compress(bytes(5_000_000))
    for content in (
        jpeg_with_exif(image, b"Exif\0\0" + b"\xff" * 50),
        jpeg_with_exif(image, b"Exif\0\0"),
        png_with_chunks(image, (b"zTXt", b"key\0\0" + bomb), (b"iTXt", b"key\0\1\0\0\0" + bomb)),
        png_with_chunks(image, (b"iCCP", b"profile\0\0" + b"no stream")),
        png_with_chunks(
            image, (b"iCCP", b"profile\0\0" + bomb), (b"pHYs", b"x"), (b"tIME", b""), (b"gAMA", b"")
        ),
        png_with_chunks(image, (b"eXIf", b"MM\0*\xff\xff\xff\xff")),
        file(image, "JPEG", icc_profile=b"no profile" * 9, comment=b"\xff" * 99),
        file(image, "WEBP", exif=b"Exif\0\0\xff\xff", icc_profile=b"no profile", xmp=b"<x"),
    ):
        for read in (
            lambda content=content: read_image(content, "image"),
            lambda content=content: decode(content),
        ):
            assert read().size == (64, 32)
            assert np.asarray(read())[5, 5, 0] > 250


def test_texts_beyond_the_limit_do_not_hide_the_picture() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("smalti", "x" * 3_000_000)
    assert read_image(file(Image.new("RGB", (8, 8)), "PNG", pnginfo=text), "image").size == (8, 8)


def test_animations_show_their_first_picture() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
        found: Any = decode(file(frames[0], kind, save_all=True, append_images=frames[1:])).getpixel((0, 0))
        assert found[0] > 240
        assert found[2] < 20


def test_a_tiff_is_upright_whatever_its_other_tags_say() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = file(Image.new("RGB", (64, 32), "red"), "TIFF", exif=exif)
    assert decode(content).size == (32, 64)


WITHOUT_THREADS = """
import os, resource, sys
from PIL import AvifImagePlugin, Image, ImageOps, PngImagePlugin
from smalti.picture_files.child import decode
content = sys.stdin.buffer.read()
os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
request = {"want": "size", "formats": ["AVIF"], "max_side": 99, "max_pixels": 9999}
print(decode(content, request)[0])
"""


@pytest.mark.process
@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")
def test_an_avif_needs_no_threads() -> None:
    content = file(Image.new("RGB", (64, 32)), "AVIF")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THREADS], input=content, capture_output=True, timeout=120
    )
    assert done.stdout == b"{'width': 64, 'height': 32}\n", done.stderr


def test_a_file_of_no_picture_is_refused_with_the_formats() -> None:
    formats = "PNG, JPEG, WebP, GIF, BMP, TIFF, PPM or AVIF"
    with pytest.raises(UnreadablePictureError, match=rf"^must be a picture in {formats} format$"):
        decode(b"<html>404</html>")
    with pytest.raises(InvalidInputError, match=r"^image: must be a picture in PNG, JPEG or WebP format$"):
        read_image(b"<html>404</html>", "image")
