"""Encoding pictures as image tokens, in Parquet shards with the columns of the original's data sets."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from jaxtyping import Float, Int
from PIL import Image
from typer.testing import CliRunner

from harness.paths import GOLDEN, SAMPLES
from smalti.cli.data import register
from smalti.errors import InvalidInputError
from smalti.training.data.encoding import BATCH, encode_pictures
from smalti.training.data.shards import ShardWriter
from smalti.training.data.world.attributes import Attributes, Figure
from smalti.training.data.world.composition import CompositionDataset, World
from smalti.training.data.world.description import load_description
from smalti.training.data.world.encoding import columns_of, encode_compositions
from smalti.training.data.world.sprites import make_sprites

VQGAN = GOLDEN / "vqgan_tiny"


class Quarters:
    """Encodes a picture as four tokens: the brightness of each quarter in 256 steps."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []

    def encode(self, pixels: Float[np.ndarray, "batch height width 3"]) -> Int[np.ndarray, "batch tokens"]:
        self.batches.append(pixels.shape)
        assert pixels.dtype == np.float32
        assert pixels.min() >= 0
        assert pixels.max() <= 1
        count, side = pixels.shape[:2]
        quarters = pixels.reshape(count, 2, side // 2, 2, side // 2, 3).mean((2, 4, 5))
        return np.rint(quarters * 255).astype(np.int64).reshape(count, 4)


@pytest.fixture(scope="module")
def world() -> World:
    description = load_description(SAMPLES / "world.json")
    return World(description, make_sprites(SAMPLES / "packages", description, 64))


def test_compositions(world: World, tmp_path: Path) -> None:
    encoder = Quarters()
    train, held_out = CompositionDataset(world, 1), CompositionDataset(world, 1, "held_out")
    counts = encode_compositions([(train, 70), (held_out, 5)], encoder, tmp_path / "tokens")
    assert counts == {"train": 70, "held_out": 5}
    # All batches have the same shape, so that an encoder is compiled once.
    assert encoder.batches == [(BATCH, 64, 64, 3)] * 3
    table = pq.read_table(tmp_path / "tokens" / "train-00000.parquet")
    assert table.column_names[:2] == ["caption", "encoding"]
    pixels, captions, drawn = train.batch(0, 70)
    rows = table.to_pylist()
    assert [row["caption"] for row in rows] == captions
    expected = Quarters().encode(pixels.astype(np.float32) / 255)
    assert [row["encoding"] for row in rows] == expected.tolist()
    for row, attributes in zip(rows, drawn, strict=True):
        assert {**row, **columns_of(attributes)} == row
    again = tmp_path / "again"
    encode_compositions([(train, 70), (held_out, 5)], Quarters(), again)
    for path in (tmp_path / "tokens").iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_columns() -> None:
    one = Attributes((Figure("cat"),), "flat")
    assert columns_of(one) == {
        "thing": "cat", "colour": "natural", "second_thing": None, "second_colour": None,
        "background": "white", "style": "flat", "size": "usual", "count": 1, "relation": None,
        "place": "middle", "pose": "upright", "variant": 0, "right": 0, "down": 0,
    }  # fmt: skip
    two = Attributes((Figure("cat", "red"), Figure("dog", "blue")), "flat", "gray", "small", (0, -8))
    assert columns_of(two) == {
        "thing": "cat", "colour": "red", "second_thing": "dog", "second_colour": "blue",
        "background": "gray", "style": "flat", "size": "small", "count": 1, "relation": "beside",
        "place": "middle", "pose": "upright", "variant": 0, "right": 0, "down": -8,
    }  # fmt: skip


def write_pictures(folder: Path, side: int, count: int, column: str = "image") -> Path:
    folder.mkdir()
    schema = pa.schema([(column, pa.binary()), ("caption", pa.string()), ("name", pa.string())])
    with ShardWriter(folder, "train", schema) as writer:
        for number in range(count):
            buffer = io.BytesIO()
            Image.new("RGB", (side, side), (number, number, number)).save(buffer, "PNG")
            writer.write({column: buffer.getvalue(), "caption": f"grey {number}", "name": f"{number}.png"})
    return folder


def test_pictures(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 48, 70)
    encoder = Quarters()
    assert encode_pictures(data, encoder, tmp_path / "tokens", 16) == {"train": 70}
    assert encoder.batches == [(BATCH, 16, 16, 3)] * 2
    table = pq.read_table(tmp_path / "tokens" / "train-00000.parquet")
    assert table.column_names == ["caption", "encoding", "name"]
    assert table.to_pylist()[69] == {"caption": "grey 69", "encoding": [69] * 4, "name": "69.png"}


def test_a_folder_without_a_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match="must have Parquet shards"):
        encode_pictures(tmp_path / "empty", Quarters(), tmp_path / "tokens", 16)
    data = write_pictures(tmp_path / "data", 16, 3, column="picture")
    with pytest.raises(InvalidInputError, match="'train' must have a column 'image'"):
        encode_pictures(data, Quarters(), tmp_path / "tokens", 16)
    assert not (tmp_path / "tokens").exists()
    assert not (tmp_path / ".tokens.partial").exists()


def test_the_command_with_a_vqgan(tmp_path: Path) -> None:
    app = typer.Typer()
    register(app)
    data = write_pictures(tmp_path / "data", 20, 3)
    result = CliRunner().invoke(app, ["data", "encode", str(data), str(VQGAN), str(tmp_path / "tokens")])
    assert result.exit_code == 0, result.output
    assert "train: 3 rows" in result.stdout
    rows = pq.read_table(tmp_path / "tokens" / "train-00000.parquet").to_pylist()
    assert len({len(row["encoding"]) for row in rows}) == 1
