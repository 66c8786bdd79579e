"""Pictures, and the PNG files that hold them together with a record of how they were made."""

import io
import json
import math
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile, PngInfo
from pydantic import Field, ValidationError

from smalti.errors import InvalidInputError
from smalti.files import create_file, write_atomically
from smalti.foreign_text import reason_of
from smalti.parameters import (
    MAX_CANDIDATES,
    CandidateIndex,
    Diversity,
    Flag,
    SamplingParameters,
    SecondPass,
    Seed,
)
from smalti.picture_files import MAX_FILE_BYTES, Decoded, check_header, reader
from smalti.validation import Strict, first_problem

__all__ = [
    "MAX_FILE_BYTES",
    "Drawing",
    "LocalPicture",
    "Picture",
    "grid",
    "load_drawing",
    "lossy_bytes",
    "masked_tiles",
    "plain_png_bytes",
    "png_bytes",
    "read_drawing",
    "read_image",
    "receive_image",
    "receive_masked_tiles",
    "receive_prompt",
    "receive_size",
    "save_png",
    "slug",
    "square",
]

CHUNK: Final = "smalti"
"""The PNG text chunk that holds a drawing as JSON."""
MAX_GRID_SIDE: Final = 2**15
"""Largest width and height of a grid that is drawn again."""


class Drawing(Strict):
    """The record of how a picture or a grid was made: everything that is needed to make it again."""

    prompt: str
    seed: Seed
    model: str
    revision: str
    sampling: SamplingParameters
    candidates: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)]
    """Number of candidates from which the picture was chosen."""
    candidate: CandidateIndex | None = None
    """Index of the picture among the candidates; None for a grid."""
    n: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] | None = None
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


@dataclass(frozen=True, kw_only=True)
class LocalPicture:
    """A picture that a pipeline has generated; a `smalti.Picture`."""

    image: Image.Image
    """The picture itself, in RGB."""
    score: float
    """The ranker's score, comparable among the pictures of one prompt."""
    seed: int
    """The seed, shared by all candidates of a prompt."""
    candidate: int
    """Its index among the candidates; together with the seed it reproduces the picture."""
    tokens: Int[np.ndarray, " tokens"]
    """Its image tokens, row by row."""
    drawing: Drawing
    """The record in the PNG file of how the picture was made."""

    def to_png(self) -> bytes:
        """Returns the PNG file, with its drawing inside, that `smalti generate` writes."""
        return png_bytes(self.image, self.drawing)

    def save(self, path: Path | str) -> None:
        """Writes the PNG file atomically; a file with this name is replaced."""
        write_atomically(Path(path), self.to_png())


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


def lossy_bytes(image: Image.Image, kind: Literal["jpeg", "webp"], quality: int) -> bytes:
    """Returns the picture as JPEG or WebP; equal input gives equal bytes.

    Args:
        image: the picture, in RGB.
        kind: the format.
        quality: from 0 to 100, the best.
    """
    buffer = io.BytesIO()
    image.save(buffer, kind.upper(), quality=quality)
    return buffer.getvalue()


def read_image(content: bytes, field: str, side: int | None = None) -> Image.Image:
    """Decodes an input picture to RGB: upright as its EXIF data says, with white in place of transparency.

    A process with limits of time, processor time and memory decodes it (`smalti.picture_files`).

    Args:
        content: a PNG, JPEG or WebP file; of an animation, the first frame is read.
        field: the path of the picture in the request, for errors.
        side: crops the picture to a centred square and scales it, as `square` does; None leaves it as it is.

    Raises:
        InvalidInputError: the file has another format, is damaged, is too large, or exceeds a limit.
    """
    check_header(content, field)
    return _image(reader().read(content, field, side=side))


async def receive_image(content: bytes, field: str, side: int | None = None) -> Image.Image:
    """Decodes an input picture without blocking; see `read_image`. A task that is cancelled frees its place."""
    check_header(content, field)
    return _image(await reader().receive(content, field, side=side))


async def receive_size(content: bytes, field: str) -> tuple[int, int]:
    """Decodes an input picture, and returns its width and height; see `receive_image`."""
    check_header(content, field)
    found = await reader().receive(content, field, "size")
    return found.width, found.height


async def receive_prompt(content: bytes, field: str) -> str | None:
    """Returns the prompt that a picture was drawn from; None if its file does not record it. See `receive_image`."""
    check_header(content, field)
    found = await reader().receive(content, field, "text")
    try:
        return None if found.missing else Drawing.model_validate_json(found.content).prompt
    except ValidationError:
        return None


def _image(found: Decoded) -> Image.Image:
    return Image.frombytes("RGB", (found.width, found.height), found.content)


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
    check_header(content, field)
    return _covered(reader().read(content, field, "tiles", side=side), sizes, side, field)


async def receive_masked_tiles(
    content: bytes, sizes: Sequence[tuple[int, int]], side: int, field: str
) -> list[int]:
    """Returns the tiles that a mask covers, without blocking; see `masked_tiles` and `receive_image`."""
    check_header(content, field)
    return _covered(await reader().receive(content, field, "tiles", side=side), sizes, side, field)


def _covered(mask: Decoded, sizes: Sequence[tuple[int, int]], side: int, field: str) -> list[int]:
    if (mask.width, mask.height) not in sizes:
        wanted = " or ".join(f"{width} x {height}" for width, height in sizes)
        raise InvalidInputError(
            field, f"has {mask.width} x {mask.height} pixels; it must be as large as the picture: {wanted}"
        )
    tiles = [position for position, covered in enumerate(mask.content) if covered]
    if not tiles:
        raise InvalidInputError(
            field, "has no fully transparent pixel; make the part transparent that is to be drawn anew"
        )
    if len(tiles) == side**2:
        raise InvalidInputError(field, "covers every tile of the picture; leave a part opaque, which is kept")
    return tiles


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
        content = path.read_bytes()
    except FileNotFoundError:
        raise InvalidInputError("like", f"{path}: there is no such file") from None
    except OSError as error:
        raise InvalidInputError("like", f"{path}: cannot be read as a picture ({error.strerror})") from None
    try:
        # The file is from anywhere, and a grid may be large.
        found = reader().read(content, "like", "text", formats=("PNG",), max_side=MAX_GRID_SIDE)
        return _drawing_in(None if found.missing else found.content)
    except InvalidInputError as error:
        raise InvalidInputError("like", f"{path}: {error.problem}") from None


def read_drawing(content: bytes) -> tuple[Image.Image, Drawing]:
    """Returns the picture of a PNG file in RGB, and how it was made.

    Raises:
        InvalidInputError: it is not a picture, or holds no drawing.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as opened:
            text = opened.text.get(CHUNK) if isinstance(opened, PngImageFile) else None
            image = opened.convert("RGB")
    except Exception as error:  # Damaged metadata make Pillow raise nearly anything.
        raise InvalidInputError("picture", f"cannot be read as a picture ({reason_of(error)})") from None
    return image, _drawing_in(text)


def _drawing_in(text: str | bytes | None) -> Drawing:
    """Returns the drawing that the text chunk of a PNG file records; raises `InvalidInputError`."""
    if text is None:
        raise InvalidInputError(
            "picture", "the file does not record how it was made; give a PNG as smalti wrote it"
        )
    try:
        return Drawing.model_validate_json(text)
    except ValidationError as error:
        problem = first_problem(error, show_value=False)
        raise InvalidInputError(
            "picture", f"its record is damaged: {problem.field or CHUNK}: {problem.message}"
        ) from None


def slug(prompt: str, max_bytes: int = 60) -> str:
    """Returns a file name for a prompt: its letters and digits, joined by hyphens."""
    text = unicodedata.normalize("NFKC", prompt).lower()
    # The vowel signs of Hindi and Thai are marks, which \w does not match.
    words = "".join(
        each if each == "_" or unicodedata.category(each)[0] in "LMN" else " " for each in text
    ).split()
    name = ""
    for word in words:
        joined = f"{name}-{word}" if name else word[:max_bytes]
        if len(joined.encode()) > max_bytes:
            break
        name = joined
    return name or "picture"


def save_png(folder: Path, stem: str, content: bytes) -> Path:
    """Writes a PNG file atomically, without ever replacing another file, whoever writes to the folder meanwhile.

    If a file with this name and the same content exists, it stays. If its content is another (because of other
    parameters, say), the new file gets a number after its name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
        # Looked for first, since in a long series most names are taken.
        if not os.path.lexists(path) and create_file(path, content):
            return path
        if path.is_file() and path.read_bytes() == content:
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
