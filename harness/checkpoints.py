"""Files of a small DALL·E BART's weights, in Flax's format and ours; comparing them, and how they are refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import serialization, traverse_util

from smalti.checkpoints.loading import DALLEBART_LAYOUT, load_parameters
from smalti.checkpoints.names import Shape
from smalti.errors import ModelError

MSGPACK, SAFETENSORS = "flax_model.msgpack", "model.safetensors"
QUERY = "model/encoder/layers/FlaxBartEncoderLayers/FlaxBartAttention_0/q_proj/kernel"
Tensors = dict[str, np.ndarray]


def write_msgpack(folder: Path, tensors: Mapping[str, Any]) -> None:
    """Writes weights in Flax's format."""
    tree = traverse_util.unflatten_dict(dict(tensors), sep="/")
    (folder / MSGPACK).write_bytes(serialization.msgpack_serialize(tree))


def by_layer(tensors: Tensors) -> Tensors:
    """Returns the tensors of a file with separate layers, by name."""
    apart: Tensors = {}
    for name, tensor in tensors.items():
        if "coderLayers/" in name:
            for layer, part in enumerate(tensor):
                apart[name.replace("coderLayers/", f"coderLayer_{layer}/")] = part
        else:
            apart[name] = tensor
    return apart


def assert_same(found: Tensors, wanted: Tensors) -> None:
    """Checks that names, types and values are the same."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)


def load_bart(folder: Path, expected: Mapping[str, Shape]) -> Tensors:
    """Loads the weights of a DALL·E BART."""
    return load_parameters(folder, expected, DALLEBART_LAYOUT)


def refusal(folder: Path, expected: Mapping[str, Shape]) -> str:
    """Returns the line with which a folder is refused."""
    with pytest.raises(ModelError) as caught:
        load_bart(folder, expected)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message
