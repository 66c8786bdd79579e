"""Sprites: the things of a world as pictures with alpha, and the file that holds them.

A sprite is cropped to its visible part and fills its square. Sprites are stored at the largest size at which they are
composed, so that they are never scaled up, and most are scaled down.
"""

import io
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from smalti.errors import InvalidInputError
from smalti.training.data.world.description import WorldDescription
from smalti.training.data.world.layout import REFERENCE
from smalti.training.data.world.packages.pictograms import Names, read_pictograms

RESOLUTIONS = (64, 80, 96, 128, 160, 192)
_VISIBLE_ALPHA = 8
_OVERSAMPLING = 2


@dataclass(frozen=True)
class Sprites:
    """The pictures of all things in all styles."""

    things: tuple[str, ...]
    styles: tuple[str, ...]
    resolution: int
    """Largest side of the pictures that can be composed from the sprites."""
    pixels: UInt8[np.ndarray, "things styles side side 4"]
    """Pixels with straight alpha; empty where a style does not draw a thing."""

    def save(self, path: Path) -> None:
        """Writes an .npz file; the same sprites give the same bytes."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            pixels=self.pixels,
            things=np.array(self.things),
            styles=np.array(self.styles),
            resolution=np.array(self.resolution),
        )
        path.write_bytes(buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Sprites":
        """Loads what `save` wrote.

        Raises:
            InvalidInputError: the file is missing, damaged, or of another kind.
        """
        try:
            # Opened here, since numpy does not close the file of a damaged archive.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return cls(
                    things=tuple(arrays["things"].tolist()),
                    styles=tuple(arrays["styles"].tolist()),
                    resolution=int(arrays["resolution"]),
                    pixels=arrays["pixels"],
                )
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InvalidInputError(str(path), f"cannot be read as a file of sprites ({error})") from None


def make_sprites(packages: Path, description: WorldDescription, resolution: int) -> Sprites:
    """Draws the sprites of a world from the installed packages.

    Raises:
        InvalidInputError: a thing has no picture in a style that it is not without, or the resolution is not in
            `RESOLUTIONS`.
    """
    if resolution not in RESOLUTIONS:
        raise InvalidInputError("resolution", f"must be one of {RESOLUTIONS}, not {resolution}")
    names = Names(packages)
    side = description.layout.big * resolution // REFERENCE
    pixels = np.zeros((len(description.things), len(description.styles), side, side, 4), np.uint8)
    for column, style in enumerate(description.styles):
        icons = read_pictograms(packages, style.package, style.word, names, Counter())
        by_label = {icon.label: icon for icon in icons}
        for row, thing in enumerate(description.things):
            if style.word in thing.without:
                continue
            if thing.label not in by_label:
                raise InvalidInputError(
                    thing.word, f"{style.package} must have a picture named {thing.label!r}"
                )
            try:
                picture = by_label[thing.label].draw(_OVERSAMPLING * side)
                pixels[row, column] = fill_square(picture, side)
            except ValueError as error:
                raise InvalidInputError(thing.word, f"its picture in {style.package}: {error}") from None
    return Sprites(
        things=tuple(thing.word for thing in description.things),
        styles=tuple(style.word for style in description.styles),
        resolution=resolution,
        pixels=pixels,
    )


def fill_square(picture: UInt8[np.ndarray, "height width 4"], side: int) -> UInt8[np.ndarray, "side side 4"]:
    """Crops a picture to its visible part and scales that to a square, centred.

    Raises:
        ValueError: nothing is visible.
    """
    rows, columns = np.nonzero(picture[..., 3] > _VISIBLE_ALPHA)
    if not len(rows):
        raise ValueError("the picture is empty")
    visible = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height, width = visible.shape[:2]
    scale = side / max(height, width)
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    square = np.zeros((side, side, 4), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = resize(visible, width, height)
    return square


def resize(
    picture: UInt8[np.ndarray, "height width 4"], new_width: int, new_height: int
) -> UInt8[np.ndarray, "new_height new_width 4"]:
    """Scales a picture. Pillow premultiplies alpha for it, so that no dark fringe appears."""
    image = Image.fromarray(picture)
    return np.array(image.resize((new_width, new_height), Image.Resampling.LANCZOS, reducing_gap=2))


def turn(
    planes: UInt8[np.ndarray, "planes height width"], degrees: int
) -> UInt8[np.ndarray, "planes new_height new_width"]:
    """Turns a picture, whose last plane is its alpha, to the left; it grows so that nothing is cut off."""
    # Without an empty rim, straight edges that touch the side of the picture would become jagged.
    layers = np.pad(planes, ((0, 0), (2, 2), (2, 2)), mode="edge")
    layers[-1, [0, 1, -2, -1]] = layers[-1, :, [0, 1, -2, -1]] = 0
    # Pillow premultiplies alpha for it, so that no dark fringe appears.
    image = Image.fromarray(np.ascontiguousarray(layers.transpose(1, 2, 0)))
    turned = np.asarray(image.rotate(degrees, Image.Resampling.BICUBIC, expand=True))
    return np.ascontiguousarray(turned.transpose(2, 0, 1))
