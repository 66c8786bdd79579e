"""Reading and writing weights in our formats and those of Flax, and the memory that it takes."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import serialization

from harness.checkpoints import (
    MSGPACK,
    QUERY,
    SAFETENSORS,
    Tensors,
    assert_same,
    by_layer,
    load_bart,
    write_msgpack,
)
from harness.paths import ROOT
from smalti.checkpoints.loading import (
    DALLEBART_LAYOUT,
    Checkpoint,
    load_parameters,
    open_checkpoint,
    save_parameters,
)
from smalti.checkpoints.names import Shape
from smalti.errors import CheckpointError

BENCHMARK = ROOT / "benchmarks" / "loading_memory.py"


def test_original_msgpack_is_read_as_by_flax(
    original: Path, tensors: Tensors, expected: Mapping[str, Shape]
) -> None:
    assert_same(load_bart(original.parent, expected), tensors)
    assert_same(load_bart(original, expected), tensors)


def test_separate_layers_are_stacked(tmp_path: Path, tensors: Tensors, expected: Mapping[str, Shape]) -> None:
    write_msgpack(tmp_path, by_layer(tensors))
    assert_same(load_bart(tmp_path, expected), tensors)


def test_tensors_in_chunks_are_joined(
    tmp_path: Path, tensors: Tensors, expected: Mapping[str, Shape], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Flax splits tensors above 1 GiB into chunks; here above 1000 bytes.
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 1000)
    write_msgpack(tmp_path, tensors)
    assert b"__msgpack_chunked_array__" in (tmp_path / MSGPACK).read_bytes()
    assert_same(load_bart(tmp_path, expected), tensors)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_types_are_kept(tmp_path: Path, tensors: Tensors, expected: Mapping[str, Shape], dtype: type) -> None:
    converted: Tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    write_msgpack(tmp_path, converted)
    assert_same(load_bart(tmp_path, expected), converted)
    save_parameters(tmp_path, converted)
    (tmp_path / MSGPACK).unlink()
    assert_same(load_bart(tmp_path, expected), converted)


def test_our_file_has_the_format_of_the_library(
    tmp_path: Path, tensors: Tensors, expected: Mapping[str, Shape]
) -> None:
    save_parameters(tmp_path, tensors)
    assert_same(safetensors.numpy.load_file(tmp_path / SAFETENSORS), tensors)
    safetensors.numpy.save_file(tensors, tmp_path / SAFETENSORS, metadata={"written by": "the library"})
    assert_same(load_bart(tmp_path, expected), tensors)


def test_our_file_has_precedence_over_the_original(
    tmp_path: Path, tensors: Tensors, expected: Mapping[str, Shape]
) -> None:
    doubled = {name: tensor * 2 for name, tensor in tensors.items()}
    write_msgpack(tmp_path, tensors)
    save_parameters(tmp_path, doubled)
    assert_same(load_bart(tmp_path, expected), doubled)


def test_scalars_and_empty_tensors_survive(tmp_path: Path) -> None:
    odd: Tensors = {"scalar": np.array(3.5, np.float32), "empty": np.zeros((0, 4), np.float16)}
    save_parameters(tmp_path, odd)
    assert_same(load_bart(tmp_path, {"scalar": (), "empty": (0, 4)}), odd)
    (tmp_path / SAFETENSORS).unlink()
    write_msgpack(tmp_path, {"scalar": np.float32(3.5), "empty": odd["empty"]})
    assert_same(load_bart(tmp_path, {"scalar": (), "empty": (0, 4)}), odd)


def test_only_selected_tensors_are_read(
    original: Path, tensors: Tensors, expected: Mapping[str, Shape]
) -> None:
    encoder = {name: tensor for name, tensor in tensors.items() if name.startswith("model/encoder/")}
    found = load_parameters(
        original.parent, expected, DALLEBART_LAYOUT, select=lambda name: name.startswith("model/encoder/")
    )
    assert_same(found, encoder)


def test_checkpoint_is_saved_tensor_by_tensor(
    tmp_path: Path, original: Path, tensors: Tensors, expected: Mapping[str, Shape]
) -> None:
    checkpoint = open_checkpoint(original.parent, expected, DALLEBART_LAYOUT)
    assert checkpoint.files == {original}
    checkpoint.save(tmp_path)
    assert_same(load_bart(tmp_path, expected), tensors)


class Interrupted(Checkpoint):
    """Weights whose reading is interrupted with Ctrl-C."""

    def read(self, name: str) -> np.ndarray:
        if name == QUERY:
            raise KeyboardInterrupt
        return super().read(name)


def test_interrupted_saving_keeps_the_old_file(
    tmp_path: Path, original: Path, expected: Mapping[str, Shape]
) -> None:
    checkpoint = Interrupted(open_checkpoint(original.parent, expected, DALLEBART_LAYOUT))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / SAFETENSORS).write_bytes(b"what was there")
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"what was there"]


def test_saving_refuses_other_types(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="tensor a has type float64, must be float32, float16 or bfloat16"
    ):
        save_parameters(tmp_path, {"a": np.zeros(3)})
    assert not list(tmp_path.iterdir())


def test_saving_is_reproducible(tmp_path: Path, tensors: Tensors) -> None:
    contents = []
    for order in (1, -1):
        save_parameters(tmp_path, dict(list(tensors.items())[::order]))
        contents.append((tmp_path / SAFETENSORS).read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.process
def test_memory_stays_near_the_size_of_the_file(tmp_path: Path) -> None:
    """The limit is 1.3 times the file; converting needs the largest tensor, here half of the file."""
    sizes = ("--d-model", "256", "--layers", "3", "--folder", str(tmp_path))
    choice = ("--formats", "safetensors", "msgpack-by-layer", "--actions", "load", "convert")
    command = [sys.executable, str(BENCHMARK), "--json", *sizes, *choice]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=300).stdout
    results = [json.loads(line) for line in output.splitlines()]
    assert len(results) == 4
    for result in results:
        assert result["file_bytes"] > 90e6
        assert result["ratio"] < {"load": 1.15, "convert": 0.8}[result["action"]]
