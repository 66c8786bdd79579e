"""Reading and writing weights in our formats and those of Flax: mismatches, damage, and memory."""

import contextlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import pytest
import safetensors.numpy
from flax import serialization, traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.paths import ROOT
from smalti.checkpoints.loading import (
    DALLEBART_LAYOUT,
    Checkpoint,
    load_parameters,
    open_checkpoint,
    save_parameters,
)
from smalti.checkpoints.msgpack import index_msgpack
from smalti.checkpoints.names import Shape
from smalti.checkpoints.safetensors import index_safetensors
from smalti.errors import CheckpointError, ModelError
from smalti.models.bart import DalleBartConfig, parameter_shapes

BENCHMARK = ROOT / "benchmarks" / "loading_memory.py"
MSGPACK, SAFETENSORS = "flax_model.msgpack", "model.safetensors"
QUERY = "model/encoder/layers/FlaxBartEncoderLayers/FlaxBartAttention_0/q_proj/kernel"
ANYTHING = {"a": (1,)}
Tensors = dict[str, np.ndarray]


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


def write_msgpack(folder: Path, tensors: Mapping[str, Any]) -> None:
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
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)


def load(folder: Path, expected: Mapping[str, Shape]) -> Tensors:
    return load_parameters(folder, expected, DALLEBART_LAYOUT)


def refusal(folder: Path, expected: Mapping[str, Shape]) -> str:
    """Returns the line with which a folder is refused."""
    with pytest.raises(ModelError) as caught:
        load(folder, expected)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def test_original_msgpack_is_read_as_by_flax(
    original: Path, tensors: Tensors, expected: Mapping[str, Shape]
) -> None:
    assert_same(load(original.parent, expected), tensors)
    assert_same(load(original, expected), tensors)


def test_separate_layers_are_stacked(tmp_path: Path, tensors: Tensors, expected: Mapping[str, Shape]) -> None:
    write_msgpack(tmp_path, by_layer(tensors))
    assert_same(load(tmp_path, expected), tensors)


def test_tensors_in_chunks_are_joined(
    tmp_path: Path, tensors: Tensors, expected: Mapping[str, Shape], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Flax splits tensors above 1 GiB into chunks; here above 1000 bytes.
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 1000)
    write_msgpack(tmp_path, tensors)
    assert b"__msgpack_chunked_array__" in (tmp_path / MSGPACK).read_bytes()
    assert_same(load(tmp_path, expected), tensors)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_types_are_kept(tmp_path: Path, tensors: Tensors, expected: Mapping[str, Shape], dtype: type) -> None:
    converted: Tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    write_msgpack(tmp_path, converted)
    assert_same(load(tmp_path, expected), converted)
    save_parameters(tmp_path, converted)
    (tmp_path / MSGPACK).unlink()
    assert_same(load(tmp_path, expected), converted)


def test_our_file_has_the_format_of_the_library(
    tmp_path: Path, tensors: Tensors, expected: Mapping[str, Shape]
) -> None:
    save_parameters(tmp_path, tensors)
    assert_same(safetensors.numpy.load_file(tmp_path / SAFETENSORS), tensors)
    safetensors.numpy.save_file(tensors, tmp_path / SAFETENSORS, metadata={"written by": "the library"})
    assert_same(load(tmp_path, expected), tensors)


def test_our_file_has_precedence_over_the_original(
    tmp_path: Path, tensors: Tensors, expected: Mapping[str, Shape]
) -> None:
    doubled = {name: tensor * 2 for name, tensor in tensors.items()}
    write_msgpack(tmp_path, tensors)
    save_parameters(tmp_path, doubled)
    assert_same(load(tmp_path, expected), doubled)


def test_scalars_and_empty_tensors_survive(tmp_path: Path) -> None:
    odd: Tensors = {"scalar": np.array(3.5, np.float32), "empty": np.zeros((0, 4), np.float16)}
    save_parameters(tmp_path, odd)
    assert_same(load(tmp_path, {"scalar": (), "empty": (0, 4)}), odd)
    (tmp_path / SAFETENSORS).unlink()
    write_msgpack(tmp_path, {"scalar": np.float32(3.5), "empty": odd["empty"]})
    assert_same(load(tmp_path, {"scalar": (), "empty": (0, 4)}), odd)


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
    assert_same(load(tmp_path, expected), tensors)


# Mismatches.


def test_missing_tensor_is_refused(tmp_path: Path, tensors: Tensors, expected: Mapping[str, Shape]) -> None:
    write_msgpack(tmp_path, {name: tensor for name, tensor in tensors.items() if name != QUERY})
    assert f"tensor {QUERY} of shape (3, 32, 32) is missing;" in refusal(tmp_path, expected)


def test_missing_layer_is_refused(tmp_path: Path, tensors: Tensors, expected: Mapping[str, Shape]) -> None:
    apart = by_layer(tensors)
    write_msgpack(tmp_path, {name: tensor for name, tensor in apart.items() if "EncoderLayer_2/" not in name})
    message = refusal(tmp_path, expected)
    assert "FlaxBartEncoderLayer_2/" in message
    assert "is missing (and 11 more)" in message


def test_unexpected_tensor_is_refused(
    tmp_path: Path, tensors: Tensors, expected: Mapping[str, Shape]
) -> None:
    write_msgpack(tmp_path, tensors | {"model/decoder/rel_bias": np.zeros((4, 2), np.float32)})
    assert "tensor model/decoder/rel_bias of shape (4, 2) is unexpected;" in refusal(tmp_path, expected)


def test_wrong_shape_is_refused(tmp_path: Path, tensors: Tensors, expected: Mapping[str, Shape]) -> None:
    write_msgpack(tmp_path, tensors | {QUERY: np.zeros((3, 32, 31), np.float32)})
    message = refusal(tmp_path, expected)
    assert f"tensor {QUERY} has shape (3, 32, 31), but config.json requires (3, 32, 32)" in message


@pytest.mark.parametrize("name", [MSGPACK, SAFETENSORS])
def test_other_types_than_floats_are_refused(
    tmp_path: Path, tensors: Tensors, expected: Mapping[str, Shape], name: str
) -> None:
    whole = tensors | {QUERY: np.zeros((3, 32, 32), np.int32)}
    if name == MSGPACK:
        write_msgpack(tmp_path, whole)
    else:
        safetensors.numpy.save_file(whole, tmp_path / name)
    message = refusal(tmp_path, expected)
    assert f"tensor {QUERY} has type " in message
    assert "must be float32, float16 or bfloat16" in message


def test_layers_of_different_types_are_refused(
    tmp_path: Path, tensors: Tensors, expected: Mapping[str, Shape]
) -> None:
    apart = by_layer(tensors)
    odd = QUERY.replace("coderLayers", "coderLayer_1")
    write_msgpack(tmp_path, apart | {odd: apart[odd].astype(np.float16)})
    assert f"tensor {odd} has type float16, but " in refusal(tmp_path, expected)


def test_everything_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    # A sparse file of eight terabytes: reading the first tensor would never end.
    size = 2**43
    entries = {
        "first": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]},
        "last": {"dtype": "F32", "shape": [3], "data_offsets": [size, size + 12]},
    }
    header = json.dumps(entries).encode()
    path = tmp_path / SAFETENSORS
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + size + 12)
    message = refusal(tmp_path, {"first": (size // 4,), "last": (4,)})
    assert "tensor last has shape (3,), but config.json requires (4,)" in message


# Damage.


def test_truncated_file_names_the_tensor(
    tmp_path: Path, original: Path, tensors: Tensors, expected: Mapping[str, Shape]
) -> None:
    content = original.read_bytes()
    place = index_msgpack(original)[QUERY].segments[0]
    (tmp_path / MSGPACK).write_bytes(content[: place[0] + 1000])
    message = refusal(tmp_path, expected)
    assert f"{MSGPACK}: truncated in tensor {QUERY}: expected 12288 bytes, found 1000" in message
    (tmp_path / MSGPACK).unlink()

    save_parameters(tmp_path, tensors)
    path = tmp_path / SAFETENSORS
    begin = index_safetensors(path)[QUERY].segments[0][0]
    path.write_bytes(path.read_bytes()[: begin + 1000])
    assert f"{SAFETENSORS}: truncated in tensor {QUERY}: expected 12288 bytes, found 1000" in refusal(
        tmp_path, expected
    )


def test_truncation_during_reading_is_noticed(
    tmp_path: Path, tensors: Tensors, expected: Mapping[str, Shape]
) -> None:
    save_parameters(tmp_path, tensors)
    checkpoint = open_checkpoint(tmp_path, expected, DALLEBART_LAYOUT)
    os.truncate(tmp_path / SAFETENSORS, 10_000)
    with pytest.raises(CheckpointError, match="truncated in tensor"):
        checkpoint.save(tmp_path)


@pytest.mark.parametrize("name", [MSGPACK, SAFETENSORS])
def test_every_truncation_is_noticed(
    tmp_path: Path, original: Path, tensors: Tensors, expected: Mapping[str, Shape], name: str
) -> None:
    if name == SAFETENSORS:
        save_parameters(tmp_path, tensors)
        content = (tmp_path / name).read_bytes()
    else:
        content = original.read_bytes()
    for end in [*range(0, 200), *range(200, len(content), 997), len(content) - 1]:
        (tmp_path / name).write_bytes(content[:end])
        assert "truncated" in refusal(tmp_path, expected)


@pytest.mark.parametrize(("name", "header"), [(MSGPACK, 2000), (SAFETENSORS, 6000)])
def test_damaged_headers_are_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory,
    original: Path,
    tensors: Tensors,
    expected: Mapping[str, Shape],
    name: str,
    header: int,
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    if name == SAFETENSORS:
        save_parameters(folder, tensors)
        content = (folder / name).read_bytes()
    else:
        content = original.read_bytes()

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(st.integers(0, header), st.binary(min_size=1, max_size=8))
    def check(offset: int, noise: bytes) -> None:
        (folder / name).write_bytes(content[:offset] + noise + content[offset + len(noise) :])
        # Noise may only change numbers, or equal the old content.
        with contextlib.suppress(CheckpointError):
            assert load(folder, expected).keys() == tensors.keys()

    check()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\x81\xa1a\x05", "a is not a tensor"),
        (b"\x81\xa1a\xa1b", "expected a tensor, found text"),
        (b"\x82\xa1a\x80\xa1a\x80", "the name a occurs twice"),
        (b"\x81\xa1a\xd4\x05\x00", "an extension of type 5"),
        (b"\x81\xa1a" * 40 + b"\x80", "nested more than 32 deep"),
        (b"\x80\x80", "1 bytes follow the last tensor"),
        (b"\x05", "expected a map from names to tensors"),
        (b"\xc1", "expected a tensor, found byte 0xc1"),
    ],
)
def test_msgpack_of_something_else_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / MSGPACK).write_bytes(content)
    message = refusal(tmp_path, ANYTHING)
    assert "damaged at byte" in message
    assert problem in message


def test_inconsistent_headers_are_refused(tmp_path: Path) -> None:
    stored = msgpack.packb(((2,), "float32", bytes(12)))
    (tmp_path / MSGPACK).write_bytes(msgpack.packb({"a": msgpack.ExtType(1, stored)}))
    assert "damaged: tensor a has 12 bytes, but shape (2,) in float32 needs 8" in refusal(
        tmp_path, {"a": (2,)}
    )
    header = json.dumps({"a": {"dtype": "F16", "shape": [3], "data_offsets": [0, 8]}}).encode()
    (tmp_path / SAFETENSORS).write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert "damaged: tensor a has 8 bytes, but shape (3,) in float16 needs 6" in refusal(
        tmp_path, {"a": (3,)}
    )


def test_pointer_of_git_lfs_is_refused(tmp_path: Path) -> None:
    (tmp_path / MSGPACK).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1673\n")
    assert "is a Git LFS pointer, not the weights" in refusal(tmp_path, ANYTHING)


# Choosing files.


def test_folder_without_weights_is_refused(tmp_path: Path, expected: Mapping[str, Shape]) -> None:
    message = refusal(tmp_path, expected)
    for name in (SAFETENSORS, MSGPACK, "encoder.pt", "encoder_mini.pt", "decoder.pt", "decoder_mini.pt"):
        assert name in message
    assert "no such folder" in refusal(tmp_path / "nowhere", expected)
    (tmp_path / "weights.bin").touch()
    assert "not a file of weights" in refusal(tmp_path / "weights.bin", expected)


def test_two_models_in_one_folder_are_refused(tmp_path: Path, expected: Mapping[str, Shape]) -> None:
    for name in ("encoder.pt", "decoder.pt", "encoder_mini.pt"):
        (tmp_path / name).touch()
    assert "has both encoder.pt and encoder_mini.pt; keep only" in refusal(tmp_path, expected)


def test_half_a_model_is_refused(tmp_path: Path, expected: Mapping[str, Shape]) -> None:
    (tmp_path / "encoder_mini.pt").touch()
    message = refusal(tmp_path, expected)
    assert "decoder.pt or decoder_mini.pt is missing beside encoder_mini.pt" in message


# Writing.


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


# Memory.


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
