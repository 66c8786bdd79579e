"""What the tests of checkpoints share: the weights of a small DALL·E BART."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from flax import serialization, traverse_util

from harness.checkpoints import MSGPACK, Tensors
from smalti.checkpoints.names import Shape
from smalti.models.bart import DalleBartConfig, parameter_shapes


@pytest.fixture(scope="module")
def original(golden: Path) -> Path:
    return golden / "dallebart_scan" / MSGPACK


@pytest.fixture(scope="module")
def tensors(original: Path) -> Tensors:
    """The tensors of the original file, as read by Flax."""
    tree = serialization.msgpack_restore(original.read_bytes())
    return traverse_util.flatten_dict(tree, sep="/")


@pytest.fixture(scope="module")
def expected(golden: Path) -> Mapping[str, Shape]:
    return parameter_shapes(DalleBartConfig.load(golden / "dallebart_scan"))
