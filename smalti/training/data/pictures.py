"""Decoding foreign pictures, scaling them to squares, and encoding them as PNG."""

import io
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps


class UnreadablePictureError(Exception):
    """The bytes cannot be decoded as a picture."""


def decode(content: bytes) -> Image.Image:
    """Decodes a picture of any format to upright RGB, with transparent pixels on white.

    Raises:
        UnreadablePictureError: the picture is damaged, or so large that it may be an attack.
    """
    try:
        with warnings.catch_warnings():
            # Pillow only warns about a picture that would fill the memory.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)
            picture = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
            return flatten(picture)
    # Damaged files raise errors of every kind, from OSError and SyntaxError to struct.error.
    except Exception as error:
        raise UnreadablePictureError(f"{type(error).__name__}: {error}") from error


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
