"""Conversion between arrays and `smalti.v1.Tensor`."""

import math
from collections.abc import Collection

import numpy as np

from smalti.errors import InvalidInputError
from smalti.v1 import tensor_pb2
from smalti.v1.tensor_pb2 import DataType, Tensor

MAX_AXES = 8

# NumPy itself has no bfloat16, so element types are looked up by name.
_TYPES: dict[str, DataType.ValueType] = {
    "float32": tensor_pb2.DATA_TYPE_FLOAT32,
    "float16": tensor_pb2.DATA_TYPE_FLOAT16,
    "bfloat16": tensor_pb2.DATA_TYPE_BFLOAT16,
    "int32": tensor_pb2.DATA_TYPE_INT32,
    "int64": tensor_pb2.DATA_TYPE_INT64,
    "uint8": tensor_pb2.DATA_TYPE_UINT8,
    "bool": tensor_pb2.DATA_TYPE_BOOL,
}
_NAMES = {number: name for name, number in _TYPES.items()}
_SIZES = {name: 2 if name == "bfloat16" else np.dtype(name).itemsize for name in _TYPES}


def to_tensor(array: np.ndarray) -> Tensor:
    """Returns an array as a message.

    Raises:
        TypeError: `smalti.v1.Tensor` has no such element type.
    """
    name = array.dtype.name
    if name not in _TYPES:
        raise TypeError(f"smalti.v1.Tensor has no element type {name}")
    if name == "bfloat16":
        array = array.view(np.uint16)
    data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return Tensor(data_type=_TYPES[name], shape=array.shape, data=data)


def to_array(
    tensor: Tensor, field: str, *, types: Collection[str] | None = None, axes: int | None = None
) -> np.ndarray:
    """Returns the array of a message, as a writable copy. BFLOAT16 becomes float32, which represents every value.

    Args:
        tensor: the message.
        field: the path of the message in the request, such as "encoding.states", for errors.
        types: allowed element types, such as "float32"; None allows all.
        axes: required number of axes; None allows any.

    Raises:
        InvalidInputError: type, shape and size do not agree or are not allowed; names the field.
    """
    name = _NAMES.get(tensor.data_type)
    if name is None:
        raise InvalidInputError(
            f"{field}.data_type",
            f"unknown type {tensor.data_type}; must be one of {', '.join(_NAMES.values())}",
        )
    if types is not None and name not in types:
        raise InvalidInputError(f"{field}.data_type", f"is {name}; must be {' or '.join(sorted(types))}")
    shape = tuple(tensor.shape)
    if len(shape) > MAX_AXES or (axes is not None and len(shape) != axes):
        expected = f"at most {MAX_AXES}" if axes is None else str(axes)
        raise InvalidInputError(f"{field}.shape", f"has {len(shape)} axes; must have {expected}")
    if any(length < 0 for length in shape):
        raise InvalidInputError(f"{field}.shape", f"is {list(shape)}; lengths must not be negative")
    expected_bytes = math.prod(shape) * _SIZES[name]
    if len(tensor.data) != expected_bytes:
        raise InvalidInputError(
            f"{field}.data",
            f"has {len(tensor.data)} bytes; {name} of shape {list(shape)} needs {expected_bytes}",
        )
    if name == "bfloat16":
        # The upper half of a float32.
        upper = np.frombuffer(tensor.data, np.dtype("<u2")).astype(np.uint32)
        return (upper << 16).view(np.float32).reshape(shape)
    if name == "bool":
        return (np.frombuffer(tensor.data, np.uint8) != 0).reshape(shape)
    stored = np.dtype(name).newbyteorder("<")
    return np.frombuffer(tensor.data, stored).astype(name).reshape(shape)
