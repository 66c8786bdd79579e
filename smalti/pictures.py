"""Pictures, and the PNG files that hold them together with a record of how they were made."""

import io
import json
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile, PngInfo
from pydantic import ValidationError

from smalti.errors import InvalidInputError
from smalti.files import write_atomically
from smalti.parameters import Diversity, Flag, SamplingParameters, SecondPass, Seed
from smalti.validation import Strict, first_problem

__all__ = [
    "MAX_FILE_BYTES",
    "Drawing",
    "Picture",
    "grid",
    "load_drawing",
    "masked_tiles",
    "plain_png_bytes",
    "png_bytes",
    "read_drawing",
    "read_image",
    "save_png",
    "slug",
    "square",
]

FILE_FORMATS: Final = ("PNG", "JPEG", "WEBP")
"""The formats in which input pictures are accepted."""
MAX_FILE_BYTES: Final = 10 * 2**20
"""Largest file of an input picture."""
MAX_SIDE: Final = 4096
"""Largest width and height of an input picture, in pixels."""
PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
PNG_CHUNK_FRAME: Final = 12
"""Bytes of a chunk of a PNG file beside its data: length, kind and checksum."""
CHUNK: Final = "smalti"
"""The PNG text chunk that holds a drawing as JSON."""


class Drawing(Strict):
    """The record of how a picture or a grid was made: everything that is needed to make it again."""

    prompt: str
    seed: Seed
    model: str
    revision: str
    sampling: SamplingParameters
    candidates: int
    """Number of candidates from which the picture was chosen."""
    candidate: int | None = None
    """Index of the picture among the candidates; None for a grid."""
    n: int | None = None
    """Number of pictures in the grid; None for a single picture."""
    score: float | None = None
    """The ranker's score; None for a grid."""
    drawn: str | None = None
    """The prompt in the model's own words; None if the model reads the prompt as it is."""
    vary: Flag = False
    """Whether candidates differ in what the prompt leaves open."""
    diversity: Diversity = 0.0
    """Weight of difference among the pictures of a grid; 0 for a single picture, which does not depend on it."""
    wording: str | None = None
    """What was encoded for this candidate; None for a grid, and without `vary`."""
    second_pass: SecondPass | None = None
    """What was done to the picture after ranking; None if nothing was."""
    refiner: str | None = None
    """Revision of the refiner; None if no refiner was used."""


@runtime_checkable
class Picture(Protocol):
    """A generated picture, from the pipeline (`LocalPicture`) or from a gateway (`RemotePicture`)."""

    @property
    def image(self) -> Image.Image:
        """The picture itself, in RGB."""

    @property
    def seed(self) -> int:
        """The seed, shared by all candidates of a prompt."""

    @property
    def candidate(self) -> int:
        """Its index among the candidates; together with the seed it reproduces the picture."""

    @property
    def score(self) -> float:
        """The ranker's score, comparable among the pictures of one prompt and one model."""

    @property
    def tokens(self) -> Int[np.ndarray, " tokens"] | None:
        """Its image tokens, row by row; None for a picture from a gateway, which does not send them."""

    @property
    def drawing(self) -> Drawing:
        """The record in the PNG file of how the picture was made."""

    def to_png(self) -> bytes:
        """Returns the PNG file, with its drawing inside, that `smalti generate` writes."""

    def save(self, path: Path | str) -> None:
        """Writes the PNG file atomically; a file with this name is replaced."""


def png_bytes(image: Image.Image, drawing: Drawing) -> bytes:
    """Returns the picture as PNG with its drawing inside; equal input gives equal bytes."""
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
    """Returns the picture as PNG without a drawing; equal input gives equal bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def read_image(content: bytes, field: str) -> Image.Image:
    """Decodes an input picture to RGB: rotated as its EXIF data says, with white in place of transparency.

    Args:
        content: a PNG, JPEG or WebP file; of an animation, the first frame is read.
        field: the path of the picture in the request, for errors.

    Raises:
        InvalidInputError: the file has another format, is damaged, or is too large.
    """
    with _opened(content, field) as image:
        if image.has_transparency_data:
            transparent = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, transparent).convert("RGB")
        return image.convert("RGB")


def masked_tiles(content: bytes, sizes: Sequence[tuple[int, int]], side: int, field: str) -> list[int]:
    """Returns the tiles that a mask covers: those with at least one fully transparent pixel.

    Args:
        content: the file of the mask, as for `read_image`.
        sizes: the widths and heights that the mask may have. If they are not square, the picture is cropped to a
            centred square, and so is the mask.
        side: number of tiles in a row.
        field: the path of the mask in the request, for errors.

    Returns:
        The positions of the tiles, row by row, ascending.

    Raises:
        InvalidInputError: the mask cannot be read, has another size, or covers no tile or every tile.
    """
    with _opened(content, field) as mask:
        if mask.size not in sizes:
            wanted = " or ".join(f"{width} x {height}" for width, height in sizes)
            raise InvalidInputError(
                field,
                f"has {mask.width} x {mask.height} pixels; it must be as large as the picture: {wanted}",
            )
        alpha = np.asarray(mask.convert("RGBA").getchannel("A"))
    # The averages of the pixels of a tile: more than 0 if one of them is transparent.
    transparent = square(
        Image.fromarray((alpha == 0).astype(np.float32)), min(mask.size), Image.Resampling.BOX
    )
    covered = np.asarray(transparent.resize((side, side), Image.Resampling.BOX)) > 0
    tiles: list[int] = np.flatnonzero(covered).tolist()
    if not tiles:
        raise InvalidInputError(
            field, "has no fully transparent pixel; make the part transparent that is to be drawn anew"
        )
    if len(tiles) == side**2:
        raise InvalidInputError(field, "covers every tile of the picture; leave a part opaque, which is kept")
    return tiles


@contextmanager
def _opened(content: bytes, field: str) -> Iterator[Image.Image]:
    """Decodes an input picture, rotated as its EXIF data says; the arguments and errors are those of `read_image`."""
    if len(content) > MAX_FILE_BYTES:
        raise InvalidInputError(field, f"has {len(content)} bytes; at most {MAX_FILE_BYTES} are allowed")
    try:
        # The header holds the size, so that a large picture is refused before it is decompressed.
        with Image.open(io.BytesIO(content), formats=FILE_FORMATS) as opened:
            if max(opened.size) > MAX_SIDE:
                width, height = opened.size
                raise InvalidInputError(
                    field, f"has {width} x {height} pixels; at most {MAX_SIDE} x {MAX_SIDE} are allowed"
                )
            if _end(content) < len(content):
                raise InvalidInputError(
                    field, "has data after the end of the picture; save the picture again"
                )
            yield ImageOps.exif_transpose(opened)
    except UnidentifiedImageError:
        raise InvalidInputError(field, "must be a picture in PNG, JPEG or WebP format") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,  # An exception where warnings are errors.
    ) as error:
        raise InvalidInputError(field, f"cannot be read: {' '.join(str(error).split())[:100]}") from None


def _end(content: bytes) -> int:
    """Returns the position after a PNG or WebP file; what follows would make it a file of two formats.

    For a JPEG file, the length of the content: many cameras append further pictures, or a film.
    """
    if content.startswith(b"RIFF"):
        size = int.from_bytes(content[4:8], "little")
        return 8 + size + size % 2
    if not content.startswith(PNG_SIGNATURE):
        return len(content)
    position = len(PNG_SIGNATURE)
    while position < len(content):
        kind = content[position + 4 : position + 8]
        position += PNG_CHUNK_FRAME + int.from_bytes(content[position : position + 4], "big")
        if kind == b"IEND":
            break
    return position


def square(
    image: Image.Image, side: int, resampling: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """Crops a picture to a centred square and scales it; a square of this size stays as it is."""
    return ImageOps.fit(image, (side, side), resampling)


def load_drawing(path: Path) -> Drawing:
    """Reads how a PNG file was made.

    Raises:
        InvalidInputError: there is no such file, it is not a picture, or it holds no drawing.
    """
    try:
        return read_drawing(path.read_bytes())[1]
    except FileNotFoundError:
        raise InvalidInputError("like", f"{path}: there is no such file") from None
    except OSError as error:
        raise InvalidInputError("like", f"{path}: cannot be read as a picture ({error})") from None
    except InvalidInputError as error:
        raise InvalidInputError("like", f"{path}: {error.problem}") from None


def read_drawing(content: bytes) -> tuple[Image.Image, Drawing]:
    """Returns the picture of a PNG file in RGB, and how it was made.

    Raises:
        InvalidInputError: it is not a picture, or holds no drawing.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            text = opened.text.get(CHUNK) if isinstance(opened, PngImageFile) else None
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise InvalidInputError("picture", f"cannot be read as a picture ({error})") from None
    if text is None:
        raise InvalidInputError(
            "picture", "the file does not record how it was made; give a PNG as smalti wrote it"
        )
    try:
        return image, Drawing.model_validate_json(text)
    except ValidationError as error:
        problem = first_problem(error, show_value=False)
        raise InvalidInputError(
            "picture", f"its record is damaged: {problem.field or CHUNK}: {problem.message}"
        ) from None


def slug(prompt: str, max_bytes: int = 60) -> str:
    """Returns a file name for a prompt: its letters and digits, joined by hyphens."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", prompt).lower())
    name = ""
    for word in words:
        joined = f"{name}-{word}" if name else word[:max_bytes]
        if len(joined.encode()) > max_bytes:
            break
        name = joined
    return name or "picture"


def save_png(folder: Path, stem: str, content: bytes) -> Path:
    """Writes a PNG file atomically, without ever replacing another picture.

    If a file with this name and the same content exists, it stays. If its content is another (because of other
    parameters, say), the new file gets a number after its name.
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
    """Lays out pictures of equal size in rows, as near to a square as their number allows."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * (width + gap), index // columns * (height + gap)))
    return sheet
