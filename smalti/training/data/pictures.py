"""Decoding foreign pictures, scaling them to squares, and encoding them as PNG."""

import io
from typing import Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from smalti.errors import InvalidInputError
from smalti.picture_files import reader

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""Formats of data sets, by Pillow's names; others run programs, or are no photographs."""
MAX_SIDE: Final = 2**15
MEMORY_BYTES: Final = 2 * 2**30
"""Memory for a picture; photographs are larger than what callers of a service may send."""


class UnreadablePictureError(Exception):
    """The bytes cannot be decoded as a picture."""


def decode(content: bytes) -> Image.Image:
    """Decodes a picture to upright RGB, with transparent pixels on white, in a process with limits.

    Raises:
        UnreadablePictureError: the picture has another format than `FORMATS`, is damaged, or so large that it may be an
            attack.
    """
    try:
        found = reader(MEMORY_BYTES).read(content, "picture", formats=FORMATS, max_side=MAX_SIDE)
    except InvalidInputError as error:
        raise UnreadablePictureError(error.problem) from None
    return Image.frombytes("RGB", (found.width, found.height), found.content)


def flatten(picture: Image.Image) -> Image.Image:
    """Converts a picture of any mode to RGB, with transparent pixels on white."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    ground = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(ground, picture.convert("RGBA")).convert("RGB")


def square(picture: Image.Image, side: int) -> Image.Image:
    """Scales the short side to `side` and keeps the middle, as in the original's data sets."""
    return ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)


def png_bytes(picture: Image.Image) -> bytes:
    """Encodes a picture as PNG; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def pixels_of(png: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes the pixels of a picture that `png_bytes` encoded."""
    return np.array(Image.open(io.BytesIO(png)).convert("RGB"))
