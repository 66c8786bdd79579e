"""Pictures as files: PNGs that carry how they were drawn, their names, and the grid."""

import io
import json
import math
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile, PngInfo
from pydantic import ValidationError

from smalti.errors import InvalidInputError
from smalti.files import write_atomically
from smalti.parameters import SamplingParameters, Seed
from smalti.validation import Strict, first_problem

FILE_FORMATS = ("PNG", "JPEG", "WEBP")
"""What is read of pictures from outside."""
MAX_FILE_BYTES = 10 * 2**20
"""Bytes of a picture from outside."""
MAX_SIDE = 4096
"""Pixels of a picture from outside, each way."""

# The PNG text chunk that holds a drawing as JSON.
CHUNK = "smalti"


class Drawing(Strict):
    """How a picture, or a grid of pictures, was drawn: all that is needed to draw it again."""

    prompt: str
    seed: Seed
    model: str
    revision: str
    sampling: SamplingParameters
    candidates: int
    """How many candidates the picture was chosen from."""
    candidate: int | None = None
    """Which of the candidates it is; None for a grid."""
    n: int | None = None
    """How many pictures the grid shows; None for a single picture."""
    score: float | None = None
    """What the ranker gave it; None for a grid."""
    drawn: str | None = None
    """The prompt in the words of the model that drew it; None where they are the prompt's own."""


def png_bytes(image: Image.Image, drawing: Drawing) -> bytes:
    """Returns the picture as PNG with its drawing inside; the same picture gives the same bytes."""
    information = PngInfo()
    information.add_itxt("Description", drawing.prompt)
    information.add_text("Software", "Smalti")
    information.add_itxt(
        CHUNK, json.dumps(drawing.model_dump(exclude_none=True), ensure_ascii=False, sort_keys=True)
    )
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=information)
    return buffer.getvalue()


def plain_png_bytes(image: Image.Image) -> bytes:
    """Returns the picture as PNG that says nothing of how it was drawn; the same picture gives the same bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def read_image(content: bytes, field: str) -> Image.Image:
    """Reads a picture from outside: as its camera held it, in RGB, white where it is transparent.

    Args:
        content: a file in PNG, JPEG or WebP; of one that moves, the first picture.
        field: its path in the request, for errors.

    Raises:
        InvalidInputError: it is no such file, damaged, or too large.
    """
    if len(content) > MAX_FILE_BYTES:
        raise InvalidInputError(field, f"has {len(content)} bytes; the most is {MAX_FILE_BYTES}")
    try:
        # The size is known from the header, before anything is unpacked.
        with Image.open(io.BytesIO(content), formats=FILE_FORMATS) as opened:
            if max(opened.size) > MAX_SIDE:
                width, height = opened.size
                raise InvalidInputError(
                    field, f"is {width} x {height} pixels large; the most is {MAX_SIDE} x {MAX_SIDE}"
                )
            image = ImageOps.exif_transpose(opened)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return image.convert("RGB")
    except UnidentifiedImageError:
        raise InvalidInputError(field, "is no picture in PNG, JPEG or WebP") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidInputError(field, f"cannot be read: {' '.join(str(error).split())[:100]}") from None


def square(image: Image.Image, side: int) -> Image.Image:
    """Cuts a picture to a square around its centre and scales it; one of that size stays as it is."""
    return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)


def read_drawing(path: Path) -> Drawing:
    """Reads how a PNG was drawn.

    Raises:
        InvalidInputError: no such file, no picture, or a picture that does not carry a drawing.
    """
    try:
        with Image.open(path) as image:
            text = image.text.get(CHUNK) if isinstance(image, PngImageFile) else None
    except FileNotFoundError:
        raise InvalidInputError("like", f"{path}: there is no such file") from None
    except (UnidentifiedImageError, OSError) as error:
        raise InvalidInputError("like", f"{path}: cannot be read as a picture ({error})") from None
    if text is None:
        raise InvalidInputError(
            "like", f"{path}: it does not say how it was drawn; only PNGs that smalti wrote, unchanged, do"
        )
    try:
        return Drawing.model_validate_json(text)
    except ValidationError as error:
        problem = first_problem(error, show_value=False)
        raise InvalidInputError(
            "like", f"{path}: its record is damaged: {problem.field or CHUNK}: {problem.message}"
        ) from None


def slug(prompt: str, longest: int = 60) -> str:
    """Returns a prompt in the form of a file name: letters, digits and hyphens."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", prompt).lower())
    name = ""
    for word in words:
        joined = f"{name}-{word}" if name else word[:longest]
        if len(joined.encode()) > longest:
            break
        name = joined
    return name or "picture"


def save_png(folder: Path, stem: str, content: bytes) -> Path:
    """Writes a PNG whole or not at all, and never over another picture.

    A file of that name with the same content is left as it is; with other content (drawn with other parameters, say)
    the new one gets a number behind its name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
        if not path.exists():
            write_atomically(path, content)
            return path
        if path.read_bytes() == content:
            return path
        number += 1


def grid(images: Sequence[Image.Image], gap: int = 2) -> Image.Image:
    """Lays pictures of one size out in rows, as near to a square as their number allows."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * (width + gap), index // columns * (height + gap)))
    return sheet
