"""A tensor in a file: what the file's header says of it, and the reading of its bytes into their place."""

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
"""The types that weights may have, by the name that msgpack, torch and numpy give them."""

FLOATS = "float32, float16 or bfloat16"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, known from the header alone.

    Attributes:
        path: the file.
        name: the tensor's name in that file.
        type_name: the name of its numbers' type; one of `FLOAT_TYPES` if it can be read.
        shape: its shape.
        segments: where its bytes are: (offset in the file, number of bytes), in the order of the numbers.
        strides: the distance in numbers between neighbours on each axis; None where rows follow rows.
    """

    path: Path
    name: str
    type_name: str
    shape: tuple[int, ...]
    segments: tuple[tuple[int, int], ...]
    strides: tuple[int, ...] | None = None

    @property
    def dtype(self) -> np.dtype:
        """The type of its numbers.

        Raises:
            CheckpointError: weights cannot have this type.
        """
        if self.type_name not in FLOAT_TYPES:
            raise CheckpointError(
                f"{self.path}: tensor {self.name} holds {self.type_name}, expected {FLOATS}"
            )
        return FLOAT_TYPES[self.type_name]

    def read_into(self, target: np.ndarray, axes: tuple[int, ...] | None = None) -> None:
        """Reads the numbers into an array of the same type.

        Args:
            target: the array, or a part of one; of this tensor's shape, transposed by `axes`.
            axes: the axis of this tensor that each axis of the target is; None for the same order.

        Raises:
            CheckpointError: the file ends before the tensor does.
        """
        if axes is None and self.strides is None and target.flags.c_contiguous:
            # Straight into its last place: a second copy of a large tensor is what the memory bound forbids.
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
                f"{self.path}: cut short in tensor {self.name}: {target.nbytes} bytes expected, {read} found"
            )


def check_extent(tensor: StoredTensor, file_size: int) -> StoredTensor:
    """Returns the tensor, if the file holds all of its bytes and they are as many as its shape needs.

    Raises:
        CheckpointError: the file is cut short, or the header contradicts itself.
    """
    stored = sum(size for _, size in tensor.segments)
    if tensor.strides is None and tensor.type_name in FLOAT_TYPES:
        needed = math.prod(tensor.shape) * tensor.dtype.itemsize
        if stored != needed:
            raise CheckpointError(
                f"{tensor.path}: damaged: tensor {tensor.name} has {stored} bytes, "
                f"its shape {tensor.shape} in {tensor.type_name} needs {needed}"
            )
    found = sum(max(0, min(size, file_size - offset)) for offset, size in tensor.segments)
    if found != stored:
        raise CheckpointError(
            f"{tensor.path}: cut short in tensor {tensor.name}: {stored} bytes expected, {found} found"
        )
    return tensor
