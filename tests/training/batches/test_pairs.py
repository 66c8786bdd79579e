"""Batches of the ranker: pictures that are nearly alike, reconstructed and damaged."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from smalti.errors import InvalidInputError
from smalti.models import vqgan
from smalti.models.vqgan import VQGAN, VQGANConfig
from smalti.testing.model import TINY_VQGAN_64, random_parameters
from smalti.training.batches.pairs import ComposedPairs, StoredPairs, open_pairs
from smalti.training.batches.reconstruction import Reconstructor, mix
from smalti.training.data.pictures import png_bytes
from smalti.training.data.shards import ShardWriter
from smalti.training.data.world.attributes import Attributes
from smalti.training.data.world.composition import World

SIZE = 12
SCHEMA = pa.schema([("image", pa.binary()), ("caption", pa.string())])


@pytest.fixture(scope="module")
def world(world_data: Path) -> World:
    return World.load(world_data / "world", 64)


@pytest.fixture(scope="module")
def pairs(world: World) -> ComposedPairs:
    return ComposedPairs(world, batch_size=SIZE, seed=3, alike=3)


@pytest.fixture(scope="module")
def network() -> VQGAN:
    return VQGAN(TINY_VQGAN_64, random_parameters(vqgan.parameter_shapes(TINY_VQGAN_64), 0))


def test_no_two_samples_of_a_batch_mean_the_same(pairs: ComposedPairs) -> None:
    for number in range(20):
        drawn, captions = pairs.draw("train", 3, number)
        assert len(drawn) == len(captions) == SIZE
        # A caption may leave out style, size and position, so they do not distinguish captions.
        meant = {(each.figures, each.background, each.count, each.relation, each.pose) for each in drawn}
        assert len(meant) == SIZE


def test_lookalike_colours_do_not_occur_together_in_a_batch(pairs: ComposedPairs) -> None:
    # The sample world's grapes are blue.
    drawn = [pairs.draw("train", 3, number)[0] for number in range(30)]
    grapes = [
        [
            (each.figures[0].colour, each.background, each.pose)
            for each in batch
            if len(each.figures) == 1 and each.figures[0].thing == "grapes"
        ]
        for batch in drawn
    ]
    colours = {colour for batch in grapes for colour, *_ in batch}
    assert {"natural", "blue"} <= colours
    for batch in grapes:
        seen = [("blue" if colour == "natural" else colour, *others) for colour, *others in batch]
        assert len(set(seen)) == len(seen)


def test_many_samples_differ_from_the_previous_one_in_one_aspect(world: World) -> None:
    def differences(one: Attributes, other: Attributes) -> int:
        if len(one.figures) != len(other.figures):
            return 9
        pairs = zip(one.figures, other.figures, strict=True)
        return (
            sum((a.thing != b.thing) + (a.colour != b.colour) for a, b in pairs)
            + (one.background != other.background)
            + (one.style != other.style)
            + ((one.count, one.size) != (other.count, other.size))
            + (one.relation != other.relation)
        )

    def share(alike: int, split: Any = "train") -> float:
        pairs = ComposedPairs(world, batch_size=SIZE, seed=3, alike=alike)
        batches = [pairs.draw(split, 3, number)[0] for number in range(20)]
        return float(np.mean([differences(*two) == 1 for drawn in batches for two in pairwise(drawn)]))

    assert share(1) < 0.15
    # At most every second sample follows the first one of its group.
    assert share(2) > 0.3
    assert share(2, "held_out") > 0.2


def test_a_batch_is_a_function_of_its_number_and_training_sees_no_held_out_combination(world: World) -> None:
    one, other = (ComposedPairs(world, batch_size=SIZE, seed=3, alike=3) for _ in range(2))
    made = [one.batch(number) for number in range(4)]
    for number in (3, 0):
        again = other.batch(number)
        np.testing.assert_array_equal(again.pixels, made[number].pixels)
        assert again.captions == made[number].captions
    assert made[0].captions != made[1].captions
    assert ComposedPairs(world, batch_size=SIZE, seed=4, alike=3).batch(0).captions != made[0].captions
    for number in range(10):
        assert {world.split_of(each) for each in one.draw("train", 3, number)[0]} == {"train"}
        assert {world.split_of(each) for each in one.draw("held_out", 3, number)[0]} == {"held_out"}
    first, second = one.held_out(2 * SIZE)
    assert first.captions != second.captions
    # Runs with any seed are measured on the same pictures.
    assert ComposedPairs(world, batch_size=SIZE, seed=4, alike=3).held_out(SIZE)[0].captions == first.captions


def write_shards(folder: Path, rows: list[tuple[int, str]], splits: tuple[str, ...]) -> Path:
    """Writes rows of (gray value, caption)."""
    folder.mkdir()
    for split in splits:
        with ShardWriter(folder, split, SCHEMA) as writer:
            for gray, caption in rows:
                picture = Image.new("RGB", (80, 64), (gray, gray, 100))
                writer.write({"image": png_bytes(picture), "caption": caption})
    return folder


def test_stored_pictures_occur_once_per_epoch_and_never_twice_in_a_batch(tmp_path: Path) -> None:
    # Each picture has two captions, and each caption two pictures.
    rows = [(10 * (row % 12), f"gray {row // 2}") for row in range(24)]
    folder = write_shards(tmp_path / "data", rows, ("train", "validation"))
    pairs = open_pairs(folder, 32, 4, seed=1, alike=4)
    assert isinstance(pairs, StoredPairs)
    seen: set[tuple[int, str]] = set()
    for number in range(24):
        pixels, captions = pairs.batch(number)
        assert pixels.shape == (4, 32, 32, 3)
        grays = [int(gray) for gray in pixels[:, 16, 16, 0]]
        assert len(set(captions)) == len(set(grays)) == 4
        assert set(zip(grays, captions, strict=True)) <= set(rows)
        seen.update(zip(grays, captions, strict=True))
    assert seen == set(rows)
    again = open_pairs(folder, 32, 4, seed=1, alike=4).batch(5)
    assert again.captions == pairs.batch(5).captions
    for batch in pairs.held_out(24):
        assert len(set(batch.captions)) == len(batch.captions) > 1


# Reconstructed pictures


def test_a_share_is_reconstructed_and_damaged_pictures_follow(pairs: ComposedPairs, network: VQGAN) -> None:
    pixels = pairs.batch(0).pixels
    seen = Reconstructor(network, 1, redrawn=0.5, damaged=0.25)(pixels, 0)
    assert seen.shape == (SIZE + 3, 64, 64, 3)
    whole = np.asarray(network.decode(network.encode(pixels.astype(np.float32) / 255))).clip(0, 1) * 255
    as_it_is = (seen[:SIZE] == pixels).all((1, 2, 3))
    # The last bit depends on how many pictures are decoded at once.
    again = (np.abs(seen[:SIZE] - whole) < 1).all((1, 2, 3))
    assert as_it_is.sum() == again.sum() == 6
    assert (as_it_is ^ again).all()
    for picture in seen[SIZE:]:
        assert not any((picture == each).all() for each in seen[:SIZE])


def test_a_damaged_picture_has_some_tokens_of_the_next_one() -> None:
    codes = np.arange(6 * 400).reshape(6, 400)
    chosen = np.array([4, 1, 5])
    mixed = mix(codes, chosen, np.random.default_rng(0))
    for row, first in zip(mixed, chosen, strict=True):
        second = codes[(first + 1) % 6]
        taken = row == second
        np.testing.assert_array_equal(np.where(taken, second, codes[first]), row)
        assert 0.05 < taken.mean() < 0.55


def test_a_reconstruction_is_a_function_of_seed_and_number(pairs: ComposedPairs, network: VQGAN) -> None:
    pixels = pairs.batch(0).pixels
    first = Reconstructor(network, 1, redrawn=0.5, damaged=0.25)(pixels, 7)
    np.testing.assert_array_equal(Reconstructor(network, 1, redrawn=0.5, damaged=0.25)(pixels, 7), first)
    for other in (
        Reconstructor(network, 1, redrawn=0.5, damaged=0.25)(pixels, 8),
        Reconstructor(network, 2, redrawn=0.5, damaged=0.25)(pixels, 7),
    ):
        assert not np.array_equal(other, first)
    np.testing.assert_array_equal(Reconstructor(network, 1, redrawn=0, damaged=0)(pixels, 7), pixels)


def test_a_decoder_that_draws_larger_pictures_is_reduced_to_the_size_of_the_batch(network: VQGAN) -> None:
    sizes = {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "patch_size": 16}
    config = VQGANConfig.from_fields(
        {**network.config.fields(), "resolution": 128, "reduction": 2, "decoder": sizes}
    )
    untrained = random_parameters(vqgan.parameter_shapes(config), 0)
    codes_of = {name: network.params[name] for name in ("encoder", "quant_conv", "quantize")}
    larger = VQGAN(config, {**untrained, **codes_of})
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    seen = Reconstructor(larger, 1, redrawn=1.0, damaged=0)(pixels, 0)
    drawn = np.asarray(larger.decode(network.encode(pixels.astype(np.float32) / 255))).clip(0, 1)
    means = drawn.reshape(4, 64, 2, 64, 2, 3).mean((2, 4))
    np.testing.assert_allclose(seen, means * 255, atol=0.51)


def test_unusable_data_is_named(tmp_path: Path, world_data: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"data: .* must have a world, or Parquet shards"):
        open_pairs(tmp_path, 64, 4, 0, 4)
    with pytest.raises(InvalidInputError, match=r"resolution: must be one of .*, not 32"):
        open_pairs(world_data, 32, 4, 0, 4)
    with pytest.raises(InvalidInputError, match=r"resolution: must be at most 64, .*, not 128"):
        open_pairs(world_data, 128, 4, 0, 4)
    rows = [(10, "one"), (20, "two"), (30, "one")]
    train_alone = write_shards(tmp_path / "alone", rows, ("train",))
    with pytest.raises(InvalidInputError, match="must have a held-out split"):
        open_pairs(train_alone, 64, 2, 0, 4)
    for split in ("train", "validation"):
        pq.write_table(SCHEMA.empty_table(), tmp_path / f"{split}-00000.parquet")
    with pytest.raises(InvalidInputError, match="the shards of 'train' have no rows"):
        open_pairs(tmp_path, 64, 2, 0, 4)
    few = write_shards(tmp_path / "few", rows, ("train", "validation"))
    with pytest.raises(InvalidInputError, match=r"batch_size: must be at most .*, about 2, not 3"):
        open_pairs(few, 64, 3, 0, 4).batch(0)
    same = write_shards(tmp_path / "same", rows[::2], ("train", "validation"))
    with pytest.raises(InvalidInputError, match="must have two pictures with different captions"):
        open_pairs(same, 64, 1, 0, 4).held_out(8)
