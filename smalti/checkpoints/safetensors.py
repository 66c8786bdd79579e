"""safetensors files (https://github.com/huggingface/safetensors#format): a JSON header, then the bytes.

The library maps or copies the whole file, which counts towards the process's memory in addition to the tensors. Here
the header gives the offset of each tensor, which is read straight into its array.
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

# The limit of the library.
MAX_HEADER_BYTES = 100_000_000
TYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CODES = {type_name: code for code, type_name in TYPE_NAMES.items()}


def index_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a file by their names.

    Raises:
        CheckpointError: the file is damaged or truncated.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise CheckpointError(f"{path}: truncated before its first tensor, at byte {size}; copy it again")
        (length,) = struct.unpack("<Q", start)
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(f"{path}: damaged: its header claims {length} bytes; copy it again")
        header = file.read(length)
        if len(header) < length:
            raise CheckpointError(
                f"{path}: truncated in its header: expected {length} bytes, found {len(header)}; copy it again"
            )
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        tensors = {name: _stored(path, name, entry, 8 + length) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: its header is not valid; copy it again") from error
    return {name: check_extent(tensor, size) for name, tensor in tensors.items()}


def _stored(path: Path, name: str, entry: dict[str, Any], base: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end - begin)):
        raise ValueError("sizes must be non-negative integers")
    type_name = TYPE_NAMES.get(entry["dtype"], entry["dtype"])
    return StoredTensor(path, name, type_name, shape, ((base + begin, end - begin),))


def write_safetensors(
    path: Path, sizes: Mapping[str, tuple[np.dtype, tuple[int, ...]]], read: Callable[[str], np.ndarray]
) -> None:
    """Writes a file atomically, one tensor at a time, so that only one has to be in memory.

    Args:
        path: the file.
        sizes: type and shape of each tensor by its name.
        read: returns a tensor by its name.

    Raises:
        CheckpointError: a type is not supported.
    """
    # Widest types first, as in the library, so that every tensor is aligned.
    names = sorted(sizes, key=lambda name: (-sizes[name][0].itemsize, name))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        dtype, shape = sizes[name]
        if dtype not in FLOAT_TYPES.values():
            raise CheckpointError(f"{path}: tensor {name} has type {dtype}, must be {FLOATS}")
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
    # A separate function, so that a tensor is freed before the next one is read.
    file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
