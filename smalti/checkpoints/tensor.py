"""A tensor in a file, as described by the file's header, and reading it into an array."""

import math
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from smalti.errors import CheckpointError

FLOAT_TYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""Supported types of weights, by their names in msgpack, torch and NumPy."""

FLOATS = "float32, float16 or bfloat16"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, known from the header alone."""

    path: Path
    """The file."""
    name: str
    """Name of the tensor in the file."""
    type_name: str
    """Type of the numbers; one of `FLOAT_TYPES` if the tensor can be read."""
    shape: tuple[int, ...]
    segments: tuple[tuple[int, int], ...]
    """Segments of the bytes: (offset in the file, number of bytes), in order."""
    strides: tuple[int, ...] | None = None
    """Distance between neighbours on each axis, in numbers; None if the tensor is contiguous."""

    @property
    def dtype(self) -> np.dtype:
        """Type of the numbers.

        Raises:
            CheckpointError: the type is not supported.
        """
        if self.type_name not in FLOAT_TYPES:
            raise CheckpointError(
                f"{self.path}: tensor {self.name} has type {self.type_name}, must be {FLOATS}"
            )
        return FLOAT_TYPES[self.type_name]

    def read_into(self, target: np.ndarray, axes: tuple[int, ...] | None = None) -> None:
        """Reads the numbers into an array of the same type.

        Args:
            target: the array, or a view of one; has this tensor's shape, transposed by `axes`.
            axes: for each axis of the target the axis of this tensor; None if the order is the same.

        Raises:
            CheckpointError: the file is truncated.
        """
        if axes is None and self.strides is None and target.flags.c_contiguous:
            # Read directly into the array, to avoid a second copy of a large tensor.
            self._read_bytes(target.reshape(-1).view(np.uint8))
            return
        stored = np.empty(sum(size for _, size in self.segments), np.uint8)
        self._read_bytes(stored)
        numbers = stored.view(self.dtype)
        if self.strides is None:
            tensor = numbers.reshape(self.shape)
        else:
            steps = tuple(step * numbers.itemsize for step in self.strides)
            tensor = np.lib.stride_tricks.as_strided(numbers, self.shape, steps, writeable=False)
        # NumPy takes None for "reversed".
        target[...] = tensor if axes is None else tensor.transpose(axes)

    def _read_bytes(self, target: np.ndarray) -> None:
        read = 0
        with self.path.open("rb") as file:
            for offset, size in self.segments:
                file.seek(offset)
                read += file.readinto(target[read : read + size].data)
        if read != target.nbytes:
            raise CheckpointError(
                f"{self.path}: truncated in tensor {self.name}: expected {target.nbytes} bytes, found {read}; "
                "copy it again"
            )


def check_extent(tensor: StoredTensor, file_size: int) -> StoredTensor:
    """Returns the tensor after checking that its size matches its shape and that the file contains all of it.

    Raises:
        CheckpointError: the file is truncated, or its header is inconsistent.
    """
    stored = sum(size for _, size in tensor.segments)
    if tensor.strides is None and tensor.type_name in FLOAT_TYPES:
        needed = math.prod(tensor.shape) * tensor.dtype.itemsize
        if stored != needed:
            raise CheckpointError(
                f"{tensor.path}: damaged: tensor {tensor.name} has {stored} bytes, "
                f"but shape {tensor.shape} in {tensor.type_name} needs {needed}; copy it again"
            )
    found = sum(max(0, min(size, file_size - offset)) for offset, size in tensor.segments)
    if found != stored:
        raise CheckpointError(
            f"{tensor.path}: truncated in tensor {tensor.name}: expected {stored} bytes, found {found}; copy it again"
        )
    return tensor
