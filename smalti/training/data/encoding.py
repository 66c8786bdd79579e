"""Encoding pictures as image tokens, once, in the form of the original's data sets: `caption` and `encoding`.

The shards keep all other columns except the picture itself.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from jaxtyping import Float, UInt8
from PIL import Image

from smalti.errors import InvalidInputError
from smalti.outputs import whole_folder
from smalti.training.data.pictures import pixels_of, square
from smalti.training.data.shards import Row, ShardWriter, load_schema, read_rows, splits_in

BATCH = 64
ENCODING_COLUMN = ("encoding", pa.list_(pa.int32()))
_IMAGE = "image"
Advance = Callable[[int], None]
"""Called with the number of rows encoded so far."""


@runtime_checkable
class Encoder(Protocol):
    """Turns pictures into image tokens, as `smalti.models.vqgan.VQGAN` does."""

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
    """Encodes all splits of a data set.

    Args:
        data: folder of shards with the columns `image` and `caption`.
        encoder: turns pictures into tokens.
        out: folder of the encoded data set.
        resolution: side of the pictures that the encoder takes; others are scaled.
        overwrite: whether the content of `out` may be replaced.
        advance: called with the number of rows encoded so far.

    Returns:
        the number of rows of each split.

    Raises:
        InvalidInputError: the folder has no such shards, or a shard is damaged.
        SmaltiError: the disk is full or cannot be written.
    """
    counts: dict[str, int] = {}
    with whole_folder(out, inputs={"data": data}, overwrite=overwrite) as folder:
        for split in splits_in(data):
            stored = load_schema(data, split)
            for name in (_IMAGE, "caption"):
                if name not in stored.names:
                    raise InvalidInputError(str(data), f"the shards of {split!r} must have a column {name!r}")
            columns = [field for field in stored if field.name not in (_IMAGE, "caption")]
            schema = pa.schema([("caption", pa.string()), ENCODING_COLUMN, *columns])
            with ShardWriter(folder, split, schema) as writer:
                stream = read_rows(data, split)
                while rows := list(islice(stream, BATCH)):
                    pixels = np.stack([_pixels(row, resolution) for row in rows])
                    for row, codes in zip(rows, encode_batch(encoder, pixels), strict=True):
                        writer.write({**row, "encoding": codes})
                    advance(sum(counts.values()) + writer.rows)
            counts[split] = writer.rows
    return counts


def encode_batch(encoder: Encoder, pixels: UInt8[np.ndarray, "batch height width 3"]) -> Iterator[list[int]]:
    """Yields the tokens of each of at most `BATCH` pictures."""
    # Padded to one size, so that the encoder is compiled once.
    count = len(pixels)
    padded = np.concatenate([pixels, np.repeat(pixels[-1:], BATCH - count, axis=0)])
    codes = np.asarray(encoder.encode(padded.astype(np.float32) / 255))
    yield from codes[:count].astype(int).tolist()


def _pixels(row: Row, resolution: int) -> UInt8[np.ndarray, "resolution resolution 3"]:
    pixels = pixels_of(row[_IMAGE])
    if pixels.shape[:2] == (resolution, resolution):
        return pixels
    return np.array(square(Image.fromarray(pixels), resolution))
