"""Composed pictures: functions of their index, true to their captions, and disjoint between splits."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.paths import SAMPLES
from smalti.errors import InvalidInputError
from smalti.training.data.world import captions as captions_module
from smalti.training.data.world.attributes import SPLITS, Attributes, Figure
from smalti.training.data.world.captions import grammar_words
from smalti.training.data.world.colours import ramp, to_oklab, to_srgb
from smalti.training.data.world.composition import CompositionDataset, World, compose, draw_attributes
from smalti.training.data.world.description import NATURAL, PLAIN, WorldDescription, load_description
from smalti.training.data.world.sprites import Sprites, fill_square, make_sprites
from smalti.training.data.world.tinting import tint

FIRST_CAPTIONS = [
    "a drawing of a red box next to a blue ball in plain style",
    "a tree with a red background in plain style",
    "a big tree on a white background in round style",
    "a picture of big blue grapes on a white background in plain style",
    "a unit in round style",
    "a picture of a star in round style",
]


@pytest.fixture(scope="module")
def description() -> WorldDescription:
    return load_description(SAMPLES / "world.json")


@pytest.fixture(scope="module")
def sprites(description: WorldDescription) -> Sprites:
    return make_sprites(SAMPLES / "packages", description, 128)


@pytest.fixture(scope="module")
def world(description: WorldDescription, sprites: Sprites) -> World:
    return World(description, sprites)


def test_a_sample_depends_on_its_index_alone(
    world: World, description: WorldDescription, sprites: Sprites
) -> None:
    pixels, captions, attributes = CompositionDataset(world, seed=3).batch(100, 40)
    again = CompositionDataset(World(description, sprites), seed=3)
    for place in (39, 0, 17):
        one, [caption], [drawn] = again.batch(100 + place, 1)
        assert (one[0] == pixels[place]).all()
        assert (caption, drawn) == (captions[place], attributes[place])
        assert drawn == draw_attributes(world, 3, 100 + place)
        assert (compose(world, drawn) == pixels[place]).all()
    picked, texts, _ = again.samples([139, 100])
    assert (picked == pixels[[39, 0]]).all()
    assert texts == [captions[39], captions[0]]


def test_seeds_and_splits_draw_other_samples(world: World) -> None:
    drawn = [CompositionDataset(world, seed, split).batch(0, 8)[1] for seed in (0, 1) for split in SPLITS]
    assert len({tuple(captions) for captions in drawn}) == 6


def test_the_first_samples_never_change(world: World) -> None:
    # A change of these samples makes all earlier runs irreproducible, so it must be deliberate.
    assert CompositionDataset(world, seed=0).batch(0, 6)[1] == FIRST_CAPTIONS


def test_no_split_shares_a_picture_with_another(world: World) -> None:
    drawn = {split: set(CompositionDataset(world, 0, split).batch(0, 500)[2]) for split in SPLITS}
    assert not drawn["train"] & drawn["validation"]
    assert not drawn["train"] & drawn["held_out"]
    assert not drawn["validation"] & drawn["held_out"]


def test_held_out_combinations_occur_in_no_other_split(world: World, description: WorldDescription) -> None:
    held_out = {(thing.word, thing.held_out.colour) for thing in description.things}
    held_out |= {(thing.word, "on " + thing.held_out.background) for thing in description.things}

    def combinations(attributes: Attributes) -> set[tuple[str, str]]:
        pairs = {(figure.thing, figure.colour) for figure in attributes.figures}
        return pairs | {(figure.thing, "on " + attributes.background) for figure in attributes.figures}

    for split in ("train", "validation"):
        for attributes in CompositionDataset(world, 0, split).batch(0, 500)[2]:
            assert not combinations(attributes) & held_out
    shown: Counter[tuple[str, str]] = Counter()
    pairs = 0
    for attributes in CompositionDataset(world, 0, "held_out").batch(0, 600)[2]:
        assert combinations(attributes) & held_out
        shown.update(combinations(attributes) & held_out)
        pairs += len(attributes.figures) == 2
    assert set(shown) == held_out
    assert pairs > 50


def test_the_shares_are_those_of_the_description(world: World) -> None:
    drawn = CompositionDataset(world).batch(0, 1500)[2]
    share = sum(len(attributes.figures) == 2 for attributes in drawn) / len(drawn)
    # A little below 0.3: two figures meet a held-out combination more often.
    assert 0.2 < share < 0.3
    single = [attributes for attributes in drawn if len(attributes.figures) == 1]
    assert 0.15 < sum(attributes.size == "small" for attributes in single) / len(single) < 0.25
    assert {attributes.style for attributes in drawn} == {"plain", "round"}
    assert {figure.thing for attributes in drawn for figure in attributes.figures} == set(world.things)


@pytest.mark.parametrize("split", SPLITS)
def test_every_word_of_a_caption_is_true(world: World, split: str) -> None:
    _, captions, drawn = CompositionDataset(world, 5, split).batch(0, 400)
    for caption, attributes in zip(captions, drawn, strict=True):
        text, _, style = caption.replace(", ", " in ").partition(" style")[0].rpartition(" in ")
        if caption.endswith(" style"):
            assert style == attributes.style
        else:
            text = caption
        ground = re.fullmatch(r"(.*) (?:on|with) an? (\w+) background", text)
        if ground:
            assert ground[2] == attributes.background
            text = ground[1]
        else:
            assert attributes.background == PLAIN
        text = re.sub(r"^an? (?:picture|drawing|icon|image) of ", "", text)
        sides = re.split(r" and | next to | to the left of | to the right of ", text)
        if " to the right of " in text:
            sides.reverse()
        assert len(sides) == len(attributes.figures)
        for side, figure in zip(sides, attributes.figures, strict=True):
            words = re.sub(r"^an? ", "", side).split()
            assert words.pop() == figure.thing
            size = words.pop(0) if words and words[0] in ("big", "small") else None
            assert (words.pop() if words else NATURAL) == figure.colour
            assert not words
            assert size in ((attributes.size, None) if attributes.size == "big" else (attributes.size,)) or (
                size is None and len(sides) == 2
            )


def test_articles(world: World) -> None:
    captions = CompositionDataset(world).batch(0, 1000)[1]
    text = "\n".join(captions)
    assert "a unit" in text
    assert "an unit" not in text
    assert not re.search(r"\ban? (?:\w+ )?grapes", text)
    assert not re.search(r"\ba [aeio]", text)
    assert not re.search(r"\ban [^aeiou]", text)
    on_orange = Attributes((Figure("ball"),), "plain", "orange")
    said = captions_module.write(on_orange, np.random.default_rng(0), frozenset())
    assert "an orange background" in said
    assert set(re.findall(r"\w+", text)) <= {
        *grammar_words(), *world.things, *world.colours, *world.backgrounds, *world.styles, "big", "small"
    }  # fmt: skip


def test_both_resolutions_show_the_same(
    description: WorldDescription, sprites: Sprites, world: World
) -> None:
    large = CompositionDataset(World(description, sprites, 128), 7).batch(0, 60)
    small = CompositionDataset(world, 7).batch(0, 60)
    assert large[1:] == small[1:]
    assert large[0].shape == (60, 128, 128, 3)
    shrunk = large[0].reshape(60, 64, 2, 64, 2, 3).mean((2, 4))
    assert np.abs(shrunk - small[0]).mean() < 3


def test_figures_are_placed(world: World) -> None:
    alone = Attributes((Figure("box"),), "plain", "gray")
    ground = np.array([206, 206, 206])

    def extent(attributes: Attributes) -> tuple[int, int, int, int]:
        rows, columns = np.nonzero((compose(world, attributes) != ground).any(-1))
        return int(columns.min()), int(columns.max()) + 1, int(rows.min()), int(rows.max()) + 1

    # 54 wide in the middle of 64, and 30.
    left, right, top, bottom = extent(alone)
    assert (left, right) == (5, 59)
    assert top > 5
    assert top + bottom == 64
    assert extent(replace(alone, offset=(4, -4))) == (9, 63, top - 4, bottom - 4)
    assert extent(replace(alone, size="small"))[:2] == (17, 47)
    pair = Attributes((Figure("box"), Figure("ball")), "plain", "gray", "small")
    assert extent(pair)[:2] == (1, 63)
    picture = compose(world, pair)
    assert (picture[:, 31:33] == ground).all()
    # From left to right: the box is brown, the ball is red.
    assert picture[32, 10, 2] > 60 > picture[32, 48, 2]


def test_a_figure_has_no_dark_fringe(world: World, description: WorldDescription) -> None:
    # A mix of a light figure and a light background must not overflow.
    for background in description.backgrounds:
        picture = compose(world, Attributes((Figure("star"),), "plain", background)).astype(int)
        low = np.minimum(description.backgrounds[background], (245, 184, 32))
        assert (picture >= low - 2).all()


def test_low_contrast_is_not_drawn(description: WorldDescription, sprites: Sprites) -> None:
    strict = World(description.model_copy(update={"smallest_contrast": 0.3}), sprites)
    red = Attributes((Figure("star", "red"),), "plain", "red")
    assert World(description, sprites).is_visible(red)
    assert not strict.is_visible(red)
    assert not strict.is_visible(Attributes((Figure("box"), Figure("star", "red")), "plain", "red", "small"))
    # A pale thing in its own colours may be on white.
    impossible = World(description.model_copy(update={"smallest_contrast": 9}), sprites)
    assert impossible.is_visible(Attributes((Figure("star"),), "plain"))
    drawn = CompositionDataset(strict).batch(0, 300)[2]
    assert all(strict.is_visible(attributes) for attributes in drawn)
    with pytest.raises(InvalidInputError, match="hold out fewer combinations"):
        CompositionDataset(impossible, split="held_out").batch(0, 1)


def test_a_tint_keeps_its_hue_on_light_and_dark_things(description: WorldDescription) -> None:
    for shade in (8, 128, 247):
        sprite = np.full((20, 20, 4), 255, np.uint8)
        sprite[..., :3] = shade
        sprite[8:12, 8:12, :3] = 128
        for colour in description.colours.values():
            tinted = tint(sprite, colour)
            assert (tinted[..., 3] == sprite[..., 3]).all()
            middle = tinted[0, 0, :3].astype(int)
            assert np.abs(middle - colour).max() < 20
            inside = to_oklab(tinted[10, 10, :3])[1:]
            own = to_oklab(np.array(colour, np.uint8))[1:]
            cosine = inside @ own / np.linalg.norm(inside) / np.linalg.norm(own)
            assert cosine > 0.9


def test_a_ramp_goes_from_dark_to_light_through_its_colour() -> None:
    tones = ramp((42, 102, 220))
    assert tuple(tones[128]) == (42, 102, 220)
    lightness = to_oklab(tones)[:, 0]
    assert (np.diff(lightness) > -0.003).all()
    assert lightness[0] < 0.3
    assert lightness[-1] > 0.85


def test_oklab_is_reversible() -> None:
    # White, and red as Ottosson gives it.
    assert to_oklab(np.array([255, 255, 255], np.uint8)) == pytest.approx([1, 0, 0], abs=1e-6)
    assert to_oklab(np.array([255, 0, 0], np.uint8)) == pytest.approx([0.628, 0.225, 0.126], abs=1e-3)
    colours = np.stack(np.meshgrid(*[np.arange(0, 256, 15).astype(np.uint8)] * 3), axis=-1)
    assert (to_srgb(to_oklab(colours)) == colours).all()


def test_a_sprite_fills_its_square() -> None:
    picture = np.zeros((40, 40, 4), np.uint8)
    picture[10:20, 5:35] = [200, 10, 10, 255]
    square = fill_square(picture, 60)
    assert (square[20:40, 2:-2, 3] > 250).all()
    assert not square[:19, :, 3].any()
    # Barely visible pixels at the edge have the colour of the thing, not of the transparent ones around it.
    edge = (square[..., 3] > 20) & (square[..., 3] < 235)
    assert (square[edge][:, 0] > 180).all()
    with pytest.raises(ValueError, match="empty"):
        fill_square(np.zeros((9, 9, 4), np.uint8), 60)


def test_sprites_can_be_saved_and_loaded(sprites: Sprites, tmp_path: Path) -> None:
    sprites.save(tmp_path / "sprites.npz")
    loaded = Sprites.load(tmp_path / "sprites.npz")
    assert (loaded.pixels == sprites.pixels).all()
    assert (loaded.things, loaded.styles, loaded.resolution) == (sprites.things, sprites.styles, 128)
    content = (tmp_path / "sprites.npz").read_bytes()
    sprites.save(tmp_path / "sprites.npz")
    assert (tmp_path / "sprites.npz").read_bytes() == content
    for damaged in (content[: len(content) // 2], b"no sprites", b""):
        (tmp_path / "sprites.npz").write_bytes(damaged)
        with pytest.raises(InvalidInputError, match=r"sprites\.npz"):
            Sprites.load(tmp_path / "sprites.npz")
    with pytest.raises(InvalidInputError, match=r"missing\.npz"):
        Sprites.load(tmp_path / "missing.npz")


def test_parts_that_do_not_fit_together_are_refused(description: WorldDescription, sprites: Sprites) -> None:
    with pytest.raises(InvalidInputError, match=r"resolution: must be .*, not 96"):
        World(description, sprites, 96)
    with pytest.raises(InvalidInputError, match="must be at most 64"):
        World(description, replace(sprites, resolution=64), 128)
    fewer = description.model_copy(update={"things": description.things[1:]})
    with pytest.raises(InvalidInputError, match="must have the things and styles"):
        World(fewer, sprites)
    with pytest.raises(InvalidInputError, match=r"split: must be .*, not 'test'"):
        CompositionDataset(World(description, sprites), split="test")


def test_the_shipped_world_is_large_and_even() -> None:
    shipped = load_description()
    assert len(shipped.things) == 100
    assert len(shipped.styles) >= 2
    assert len(shipped.colours) == len(shipped.backgrounds) == 8
    for kind in ("colour", "background"):
        counts = Counter(getattr(thing.held_out, kind) for thing in shipped.things)
        assert len(counts) == 8
        assert max(counts.values()) <= 13
        assert min(counts.values()) >= 11
