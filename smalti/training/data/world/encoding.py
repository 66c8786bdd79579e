"""Encoding composed pictures as image tokens, with a column for each of their attributes."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from smalti.outputs import whole_folder
from smalti.training.data.encoding import BATCH, ENCODING_COLUMN, Advance, Encoder, encode_batch
from smalti.training.data.shards import Row, ShardWriter
from smalti.training.data.world.attributes import Attributes
from smalti.training.data.world.composition import CompositionDataset
from smalti.training.prefetching import Prefetched

_MIN_BATCHES = 50
"""Batches for which another process is worth its start."""
COMPOSITION_SCHEMA = pa.schema(
    [
        ("caption", pa.string()),
        ENCODING_COLUMN,
        ("thing", pa.string()),
        ("colour", pa.string()),
        ("second_thing", pa.string()),
        ("second_colour", pa.string()),
        ("background", pa.string()),
        ("style", pa.string()),
        ("size", pa.string()),
        ("count", pa.int32()),
        ("relation", pa.string()),
        ("place", pa.string()),
        ("pose", pa.string()),
        ("variant", pa.int32()),
        ("right", pa.int32()),
        ("down", pa.int32()),
    ]
)


def encode_compositions(
    data: Iterable[tuple[CompositionDataset, int]],
    encoder: Encoder,
    out: Path,
    overwrite: bool = False,
    advance: Advance = lambda count: None,
    processes: int = 0,
) -> dict[str, int]:
    """Composes and encodes the first samples of each given data set.

    Args:
        data: data sets of different splits, each with the number of its samples.
        encoder: turns pictures into tokens.
        out: folder of the encoded data set.
        overwrite: whether the content of `out` may be replaced.
        advance: called with the number of rows encoded so far.
        processes: number of processes that may compose pictures; 0 for one thread of this process.

    Returns:
        the number of rows of each split.

    Raises:
        SmaltiError: the disk is full or cannot be written, or a process that composes was ended.
    """
    counts: dict[str, int] = {}
    with whole_folder(out, overwrite=overwrite) as folder:
        for dataset, count in data:
            with ShardWriter(folder, dataset.split, COMPOSITION_SCHEMA) as writer:
                batches = -(-count // BATCH)
                composed = Prefetched(
                    partial(_compose, dataset, count), min(processes, batches // _MIN_BATCHES)
                )
                for number in range(batches):
                    pixels, captions, drawn = composed(number)
                    codes = encode_batch(encoder, pixels)
                    for caption, attributes, row in zip(captions, drawn, codes, strict=True):
                        writer.write({"caption": caption, "encoding": row, **columns_of(attributes)})
                    advance(sum(counts.values()) + writer.rows)
            counts[dataset.split] = writer.rows
    return counts


def _compose(
    dataset: CompositionDataset, count: int, number: int
) -> tuple[UInt8[np.ndarray, "pictures height width 3"], list[str], list[Attributes]]:
    """Composes one batch of the first `count` samples."""
    start = number * BATCH
    return dataset.batch(start, max(0, min(BATCH, count - start)))


def columns_of(attributes: Attributes) -> Row:
    """Returns the attributes of a picture as columns of a table, with null for a missing second thing and relation."""
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
        "count": attributes.count,
        "relation": attributes.relation if second else None,
        "place": attributes.place,
        "pose": attributes.pose,
        "variant": attributes.variant,
        "right": right,
        "down": down,
    }
