"""Weights that are refused: mismatches, damage, and a wrong choice of files."""

import contextlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import msgpack
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.checkpoints import (
    MSGPACK,
    QUERY,
    SAFETENSORS,
    Tensors,
    by_layer,
    load_bart,
    refusal,
    write_msgpack,
)
from smalti.checkpoints.loading import DALLEBART_LAYOUT, open_checkpoint, save_parameters
from smalti.checkpoints.msgpack import index_msgpack
from smalti.checkpoints.names import Shape
from smalti.checkpoints.safetensors import index_safetensors
from smalti.errors import CheckpointError

ANYTHING = {"a": (1,)}


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
            assert load_bart(folder, expected).keys() == tensors.keys()

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
