"""Arrays as `smalti.v1.Tensor`, and back, checked."""

import math
from collections.abc import Collection

import numpy as np

from smalti.errors import InvalidInputError
from smalti.v1 import tensor_pb2
from smalti.v1.tensor_pb2 import DataType, Tensor

MAX_AXES = 8

# The types of numpy's that have one of the contract's; bfloat16 is none of numpy's own, and goes by its name.
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
        TypeError: the contract has no such type of elements.
    """
    name = array.dtype.name
    if name not in _TYPES:
        raise TypeError(f"the contract has no tensors of {name}")
    if name == "bfloat16":
        array = array.view(np.uint16)
    data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return Tensor(data_type=_TYPES[name], shape=array.shape, data=data)


def to_array(
    tensor: Tensor, field: str, *, types: Collection[str] | None = None, axes: int | None = None
) -> np.ndarray:
    """Returns a message's array; a copy, which may be written to. BFLOAT16 becomes float32, which holds every value.

    Args:
        tensor: the message.
        field: its path in the request, such as "encoding.states", for errors.
        types: the types of elements that are taken, such as "float32"; all if they are None.
        axes: the number of axes; any number if it is None.

    Raises:
        InvalidInputError: type, shape and size do not agree, or are not those that are taken; names the field.
    """
    name = _NAMES.get(tensor.data_type)
    if name is None:
        raise InvalidInputError(
            f"{field}.data_type",
            f"{tensor.data_type} is none of the contract's types; {', '.join(_NAMES.values())} are",
        )
    if types is not None and name not in types:
        raise InvalidInputError(f"{field}.data_type", f"is {name}; {' or '.join(sorted(types))} is expected")
    shape = tuple(tensor.shape)
    if len(shape) > MAX_AXES or (axes is not None and len(shape) != axes):
        expected = f"at most {MAX_AXES} are taken" if axes is None else f"{axes} are expected"
        raise InvalidInputError(f"{field}.shape", f"has {len(shape)} axes; {expected}")
    if any(length < 0 for length in shape):
        raise InvalidInputError(f"{field}.shape", f"{list(shape)} has a length below 0")
    expected_bytes = math.prod(shape) * _SIZES[name]
    if len(tensor.data) != expected_bytes:
        raise InvalidInputError(
            f"{field}.data",
            f"has {len(tensor.data)} bytes; {name} of shape {list(shape)} has {expected_bytes}",
        )
    if name == "bfloat16":
        # The upper half of a float32.
        upper = np.frombuffer(tensor.data, np.dtype("<u2")).astype(np.uint32)
        return (upper << 16).view(np.float32).reshape(shape)
    if name == "bool":
        return (np.frombuffer(tensor.data, np.uint8) != 0).reshape(shape)
    stored = np.dtype(name).newbyteorder("<")
    return np.frombuffer(tensor.data, stored).astype(name).reshape(shape)
