"""safetensors files (https://github.com/huggingface/safetensors#format): a JSON header, then the bytes.

The library maps the file or copies it, and either counts in the process's memory beside the tensors
themselves; here the header gives the place of each tensor, which is then read straight into its array.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from smalti.checkpoints.tensor import FLOAT_TYPES, FLOATS, StoredTensor, check_extent
from smalti.errors import CheckpointError
from smalti.files import atomic_path

# The library refuses a larger header.
MAX_HEADER_BYTES = 100_000_000
TYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CODES = {type_name: code for code, type_name in TYPE_NAMES.items()}


def index_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a file by their names.

    Raises:
        CheckpointError: the file is damaged or cut short.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise CheckpointError(f"{path}: cut short before its first tensor: it ends at byte {size}")
        (length,) = struct.unpack("<Q", start)
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(f"{path}: damaged: its header cannot be {length} bytes long")
        header = file.read(length)
        if len(header) < length:
            raise CheckpointError(
                f"{path}: cut short in its header: {length} bytes expected, {len(header)} found"
            )
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        tensors = {name: _stored(path, name, entry, 8 + length) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: its header is not that of a safetensors file") from error
    return {name: check_extent(tensor, size) for name, tensor in tensors.items()}


def _stored(path: Path, name: str, entry: dict[str, Any], base: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end - begin)):
        raise ValueError("sizes are whole numbers")
    type_name = TYPE_NAMES.get(entry["dtype"], entry["dtype"])
    return StoredTensor(path, name, type_name, shape, ((base + begin, end - begin),))


def write_safetensors(
    path: Path, sizes: Mapping[str, tuple[np.dtype, tuple[int, ...]]], read: Callable[[str], np.ndarray]
) -> None:
    """Writes a file, one tensor after the other, so that no more than one has to be in memory.

    A failure, or Ctrl-C, leaves what was there before.

    Args:
        path: the file.
        sizes: the type and the shape of each tensor by its name.
        read: gives a tensor when its turn comes.

    Raises:
        CheckpointError: a type that weights cannot have.
    """
    # The widest types first, as the library does it, so that every tensor is aligned to its own type.
    names = sorted(sizes, key=lambda name: (-sizes[name][0].itemsize, name))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        dtype, shape = sizes[name]
        if dtype not in FLOAT_TYPES.values():
            raise CheckpointError(f"{path}: tensor {name} holds {dtype}, expected {FLOATS}")
        begin, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": CODES[dtype.name], "shape": list(shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in names:
            _write_tensor(file, read(name))
        # The rename must not reach the disk before the content does.
        file.flush()
        os.fsync(file.fileno())


def _write_tensor(file: BinaryIO, tensor: np.ndarray) -> None:
    # A function of its own, so that a tensor is gone before the next one is read.
    file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
