"""The file formats of pictures in answers."""

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import Final

from PIL import Image

from smalti.pictures import lossy_bytes

MAX_THREADS: Final = 2
"""Conversions at the same time."""

MAX_SMALL_SIDE: Final = 128
"""Maximum width and height of small pictures."""
SMALL_QUALITY: Final = 75

_THREADS: Final = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="convert")


class OutputFormat(StrEnum):
    """The format of a picture's file."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def media_type(self) -> str:
        """The media type of the file."""
        return f"image/{self.value}"


async def converted(png: bytes, output_format: OutputFormat, quality: int) -> bytes:
    """Returns a PNG file in another format; PNG files stay as they are.

    Args:
        png: the file.
        output_format: the new format.
        quality: from 0 to 100, the best.
    """
    if output_format is OutputFormat.PNG:
        return png
    return await asyncio.get_running_loop().run_in_executor(_THREADS, _convert, png, output_format, quality)


async def small_webp(png: bytes) -> bytes:
    """Returns a PNG file as a small WebP file, for many viewers."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, _shrink, png)


def _shrink(png: bytes) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png), formats=("PNG",)) as opened:
        image = opened.convert("RGB")
    image.thumbnail((MAX_SMALL_SIDE, MAX_SMALL_SIDE), Image.Resampling.BOX)
    image.save(buffer, "WEBP", quality=SMALL_QUALITY, method=0)
    return buffer.getvalue()


def _convert(png: bytes, output_format: OutputFormat, quality: int) -> bytes:
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        return lossy_bytes(
            image.convert("RGB"), "webp" if output_format is OutputFormat.WEBP else "jpeg", quality
        )
