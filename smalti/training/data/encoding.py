"""Pictures to image tokens, once, in the form of the original's data sets: `caption` and `encoding`.

The shards keep every other column too (what is on a composed picture, where one from outside came from), only
the picture itself is left out.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from jaxtyping import Float, UInt8
from PIL import Image

from smalti.errors import InvalidInputError
from smalti.files import staged
from smalti.training.data.pictures import pixels_of, square
from smalti.training.data.shards import Row, ShardWriter, read_rows, read_schema, splits_in
from smalti.training.data.world.attributes import Attributes
from smalti.training.data.world.composition import CompositionDataset

BATCH = 64
_ENCODING = ("encoding", pa.list_(pa.int32()))
_IMAGE = "image"
COMPOSITION_SCHEMA = pa.schema(
    [
        ("caption", pa.string()),
        _ENCODING,
        ("thing", pa.string()),
        ("colour", pa.string()),
        ("second_thing", pa.string()),
        ("second_colour", pa.string()),
        ("background", pa.string()),
        ("style", pa.string()),
        ("size", pa.string()),
        ("right", pa.int32()),
        ("down", pa.int32()),
    ]
)

Advance = Callable[[int], None]


@runtime_checkable
class Encoder(Protocol):
    """What turns pictures into image tokens: `smalti.models.vqgan.VQGAN` does."""

    def encode(self, pixels: Float[np.ndarray, "batch height width 3"]) -> Any:
        """Returns the codes `[batch, tokens]` of pictures in [0, 1]."""


def encode_pictures(
    data: Path,
    encoder: Encoder,
    out: Path,
    resolution: int,
    overwrite: bool = False,
    advance: Advance = lambda count: None,
) -> dict[str, int]:
    """Encodes every split of a data set of pictures.

    Args:
        data: a folder of shards with the columns `image` and `caption`.
        encoder: makes the tokens.
        out: the folder of the encoded data set.
        resolution: the side of the pictures that the encoder takes; others are scaled.
        overwrite: whether what is in `out` may go away.
        advance: is told how many rows are done.

    Returns:
        the number of rows of every split.

    Raises:
        InvalidInputError: the folder has no such shard, or a shard is damaged.
        SmaltiError: the disk is full or cannot be written.
    """
    counts: dict[str, int] = {}
    with staged(out, overwrite) as folder:
        for split in splits_in(data):
            stored = read_schema(data, split)
            for name in (_IMAGE, "caption"):
                if name not in stored.names:
                    raise InvalidInputError(str(data), f"the shards of {split!r} have no column {name!r}")
            columns = [field for field in stored if field.name not in (_IMAGE, "caption")]
            schema = pa.schema([("caption", pa.string()), _ENCODING, *columns])
            with ShardWriter(folder, split, schema) as writer:
                stream = read_rows(data, split)
                while rows := list(islice(stream, BATCH)):
                    pixels = np.stack([_at(row, resolution) for row in rows])
                    for row, codes in zip(rows, _encode(encoder, pixels), strict=True):
                        writer.write({**row, "encoding": codes})
                    advance(sum(counts.values()) + writer.rows)
            counts[split] = writer.rows
    return counts


def encode_compositions(
    data: Iterable[tuple[CompositionDataset, int]],
    encoder: Encoder,
    out: Path,
    overwrite: bool = False,
    advance: Advance = lambda count: None,
) -> dict[str, int]:
    """Composes and encodes the first samples of each data set given.

    Args:
        data: data sets of different splits, each with the number of its samples.
        encoder: makes the tokens.
        out: the folder of the encoded data set.
        overwrite: whether what is in `out` may go away.
        advance: is told how many rows are done.

    Returns:
        the number of rows of every split.

    Raises:
        SmaltiError: the disk is full or cannot be written.
    """
    counts: dict[str, int] = {}
    with staged(out, overwrite) as folder:
        for dataset, count in data:
            with ShardWriter(folder, dataset.split, COMPOSITION_SCHEMA) as writer:
                for start in range(0, count, BATCH):
                    pixels, captions, drawn = dataset.batch(start, min(BATCH, count - start))
                    codes = _encode(encoder, pixels)
                    for caption, attributes, row in zip(captions, drawn, codes, strict=True):
                        writer.write({"caption": caption, "encoding": row, **columns_of(attributes)})
                    advance(sum(counts.values()) + writer.rows)
            counts[dataset.split] = writer.rows
    return counts


def columns_of(attributes: Attributes) -> Row:
    """Returns what is on a picture as the columns of a table; a second thing that is missing is null."""
    first, *others = attributes.figures
    second = others[0] if others else None
    right, down = attributes.offset
    return {
        "thing": first.thing,
        "colour": first.colour,
        "second_thing": second.thing if second else None,
        "second_colour": second.colour if second else None,
        "background": attributes.background,
        "style": attributes.style,
        "size": attributes.size,
        "right": right,
        "down": down,
    }


def _encode(encoder: Encoder, pixels: UInt8[np.ndarray, "batch height width 3"]) -> Iterator[list[int]]:
    # Filled up to one size, so that the encoder is compiled once.
    count = len(pixels)
    filled = np.concatenate([pixels, np.repeat(pixels[-1:], BATCH - count, axis=0)])
    codes = np.asarray(encoder.encode(filled.astype(np.float32) / 255))
    yield from codes[:count].astype(int).tolist()


def _at(row: Row, resolution: int) -> UInt8[np.ndarray, "resolution resolution 3"]:
    pixels = pixels_of(row[_IMAGE])
    if pixels.shape[:2] == (resolution, resolution):
        return pixels
    return np.array(square(Image.fromarray(pixels), resolution))
