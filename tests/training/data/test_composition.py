"""Composed pictures: functions of their index, true to their captions, and disjoint between splits."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.paths import SAMPLES
from smalti.errors import InvalidInputError
from smalti.training.data.world.attributes import PLACES, POSES, SPLITS, Attributes, Figure
from smalti.training.data.world.colours import ramp, to_oklab, to_srgb
from smalti.training.data.world.composition import CompositionDataset, World, compose, draw_attributes
from smalti.training.data.world.description import (
    HELD_OUT_ASPECTS,
    PLAIN,
    WorldDescription,
    load_description,
)
from smalti.training.data.world.grounds import draw_ground
from smalti.training.data.world.layout import GROUND_VARIANTS, lay_out
from smalti.training.data.world.sprites import Sprites, fill_square, make_sprites
from smalti.training.data.world.tinting import tint

FIRST_CAPTIONS = [
    "a picture of a green tree right of a blue ball",
    "two dark blue trees at night",
    "a dark blue tree on a blue background",
    "blue grapes behind a unit on a white background in plain style",
    "a red box to the left of a tree in plain style",
    "a small star",
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
    held_out = {
        (thing.word, aspect, value)
        for thing in description.things
        for aspect in HELD_OUT_ASPECTS
        if (value := getattr(thing.held_out, aspect)) is not None
    }

    def combinations(attributes: Attributes) -> set[tuple[str, str, object]]:
        *pattern, colour = attributes.background.split()
        background = (*(("kind", each) for each in pattern), ("background", colour), ("kind", colour))
        shown: list[tuple[str, object]] = [("style", attributes.style), *background]
        shown += [("count", attributes.count)] if attributes.count > 1 else []
        shown += [("relation", attributes.relation)] if attributes.is_pair else []
        pairs = {(figure.thing, *each) for figure in attributes.figures for each in shown}
        return pairs | {(figure.thing, "colour", figure.colour.split()[-1]) for figure in attributes.figures}

    for split in ("train", "validation"):
        for attributes in CompositionDataset(world, 0, split).batch(0, 500)[2]:
            assert not combinations(attributes) & held_out
            assert not world.held_out_aspects(attributes)
    shown: Counter[tuple[str, str, object]] = Counter()
    pairs = 0
    for attributes in CompositionDataset(world, 0, "held_out").batch(0, 900)[2]:
        found = combinations(attributes) & held_out
        assert {aspect for _, aspect, _ in found} == world.held_out_aspects(attributes) != set()
        shown.update(found)
        pairs += attributes.is_pair
    assert set(shown) == held_out
    assert pairs > 50


def test_the_shares_are_those_of_the_description(world: World) -> None:
    drawn = CompositionDataset(world).batch(0, 1500)[2]
    relations = Counter(each.relation for each in drawn if each.is_pair)
    # A little below 0.2: two figures meet a held-out combination more often.
    assert 0.1 < relations["beside"] / len(drawn) < 0.2
    assert 0.02 < relations["above"] / len(drawn) < 0.07
    assert 0.02 < relations["in front of"] / len(drawn) < 0.06
    assert {each.count for each in drawn} == {1, 2, 3, 4}
    single = [each for each in drawn if not each.is_pair and each.count == 1]
    sizes = Counter(each.size for each in single)
    assert 0.1 < sizes["small"] / len(single) < 0.2
    assert sizes["usual"] > sizes["small"] > sizes["tiny"] > 0
    assert {each.place for each in drawn} == set(PLACES)
    assert {each.pose for each in drawn} == set(POSES)
    assert {each.style for each in drawn} == {"plain", "round"}
    assert {figure.thing for each in drawn for figure in each.figures} == set(world.things)
    assert {figure.colour for each in drawn for figure in each.figures} == set(world.colours)
    assert {each.background for each in drawn} == set(world.backgrounds)


def test_a_thing_is_drawn_only_in_its_styles_and_shown_as_the_description_allows(world: World) -> None:
    for attributes in CompositionDataset(world).batch(0, 1500)[2]:
        things = {figure.thing for figure in attributes.figures}
        assert not (attributes.style == "round" and things & {"unit", "box"})
        assert attributes.pose == "upright" or not things & {"ball", "star"}
        assert attributes.count == 1 or things != {"grapes"}


def test_both_resolutions_show_the_same(
    description: WorldDescription, sprites: Sprites, world: World
) -> None:
    large = CompositionDataset(World(description, sprites, 128), 7).batch(0, 60)
    small = CompositionDataset(world, 7).batch(0, 60)
    assert large[1:] == small[1:]
    assert large[0].shape == (60, 128, 128, 3)
    shrunk = large[0].reshape(60, 64, 2, 64, 2, 3).mean((2, 4))
    assert np.abs(shrunk - small[0]).mean() < 3


def extent(world: World, attributes: Attributes) -> tuple[int, int, int, int]:
    """Returns the left, right, top and bottom edge of everything on a gray background."""
    rows, columns = np.nonzero((compose(world, attributes) != np.array([206, 206, 206])).any(-1))
    return int(columns.min()), int(columns.max()) + 1, int(rows.min()), int(rows.max()) + 1


def test_figures_are_placed(world: World) -> None:
    alone = Attributes((Figure("box"),), "plain", "gray")
    # 48 wide in the middle of 64, and the other sizes.
    left, right, top, bottom = extent(world, alone)
    assert (left, right) == (8, 56)
    assert top > 8
    assert top + bottom == 64
    assert extent(world, replace(alone, offset=(4, -4))) == (12, 60, top - 4, bottom - 4)
    assert extent(world, replace(alone, size="big"))[:2] == (2, 62)
    assert extent(world, replace(alone, size="small"))[:2] == (17, 47)
    assert extent(world, replace(alone, size="tiny"))[:2] == (23, 41)
    left, right, top, bottom = extent(world, replace(alone, size="tiny", place="bottom left"))
    assert (left, right) == (3, 21)
    assert 40 < top < bottom <= 61
    pair = Attributes((Figure("box"), Figure("ball")), "plain", "gray", "small")
    assert extent(world, pair)[:2] == (1, 63)
    picture = compose(world, pair)
    assert (picture[:, 31:33] == (206, 206, 206)).all()
    # From left to right, and from top to bottom: the box is brown, the ball is red.
    assert picture[32, 10, 2] > 60 > picture[32, 48, 2]
    picture = compose(world, replace(pair, relation="above"))
    assert picture[16, 26, 2] > 60 > picture[48, 32, 2]
    # The ball behind covers the middle, and the box before it the place below.
    picture = compose(world, replace(pair, relation="in front of"))
    assert picture[20, 32, 2] < 60 < picture[46, 26, 2]


def test_copies_do_not_touch_each_other_or_the_edge(world: World) -> None:
    for count in (2, 3, 4):
        sides = set()
        for variant in range(200):
            attributes = Attributes(
                (Figure("box"),), "plain", size="small", count=count, variant=variant and variant * 4969
            )
            placed = lay_out(attributes, world.description.layout)
            assert len(placed) == count
            sides.add(placed[0].side)
            for index, one in enumerate(placed):
                assert one.side / 2 <= one.right <= 64 - one.side / 2
                assert one.side / 2 <= one.down <= 64 - one.side / 2
                for other in placed[:index]:
                    apart = max(abs(one.right - other.right), abs(one.down - other.down))
                    # Two turned ones may be closer by the rounding of their corners.
                    assert apart >= one.side - 0.5, (count, variant)
        assert sides == ({30} if count == 2 else {26, 18})


def test_figures_are_mirrored_and_turned(world: World) -> None:
    sail = Attributes((Figure("tree"),), "plain", "gray", variant=0)
    plain = compose(world, sail)
    assert (compose(world, replace(sail, pose="upside down")) == plain[::-1, ::-1]).all()
    tilted = compose(world, replace(sail, pose="tilted left"))
    # The top of a tree, which is narrow, moves to the left.
    top = np.argwhere((tilted != plain[0, 0]).any(-1))[0]
    assert top[1] < 28
    mirrored = [
        variant
        for variant in range(1, 60)
        if lay_out(replace(sail, variant=variant), world.description.layout)[0].mirrored
    ]
    assert 10 < len(mirrored) < 50
    assert "box" in world.vocabulary.never_mirrored
    box = Attributes((Figure("box"),), "plain", "gray")
    turns = {
        lay_out(replace(box, variant=variant), world.description.layout)[0].turn for variant in range(200)
    }
    assert turns == {0, 6, -6}


def test_grounds_are_the_same_at_each_resolution(
    world: World, description: WorldDescription, sprites: Sprites
) -> None:
    large = World(description, sprites, 128)
    pictures = set()
    for name in world.backgrounds:
        for variant in range(GROUND_VARIANTS):
            kind = world.grounds[name]
            small, big = (draw_ground(kind, side, variant).astype(int) for side in (64, 128))
            shrunk = big.reshape(64, 2, 64, 2, 3).mean((1, 3))
            assert np.abs(shrunk - small).mean() < 2
            pictures.add((name, small.tobytes()))
            # A thing stands out from all tones, so they must be those that are drawn.
            tones = to_oklab(np.array(kind.tones, np.uint8))
            nearest = np.linalg.norm(to_oklab(small.astype(np.uint8))[..., None, :] - tones, axis=-1).min(-1)
            assert np.median(nearest) < 0.06, name
    assert len(pictures) == len(world.plain_backgrounds) + 4 * (
        len(world.backgrounds) - len(world.plain_backgrounds)
    )
    assert large.ground("night", 5).shape == (3, 128, 128)


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
        CompositionDataset(impossible, accept=lambda each: each.background != PLAIN).batch(0, 1)


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
    with pytest.raises(InvalidInputError, match=r"resolution: must be .*, not 72"):
        World(description, sprites, 72)
    with pytest.raises(InvalidInputError, match="must be at most 64"):
        World(description, replace(sprites, resolution=64), 128)
    fewer = description.model_copy(update={"things": description.things[1:]})
    with pytest.raises(InvalidInputError, match="must have the things and styles"):
        World(fewer, sprites)
    with pytest.raises(InvalidInputError, match=r"split: must be .*, not 'test'"):
        CompositionDataset(World(description, sprites), split="test")


def test_the_shipped_world_is_large_and_even() -> None:
    shipped = load_description()
    assert len(shipped.things) >= 200
    assert len(shipped.styles) == 5
    for kind, values in (("colour", shipped.colours), ("background", shipped.backgrounds)):
        counts = Counter(getattr(thing.held_out, kind) for thing in shipped.things)
        assert set(counts) == set(values)
        assert max(counts.values()) - min(counts.values()) <= 3
    for aspect in ("count", "relation", "style", "kind"):
        held = [thing for thing in shipped.things if getattr(thing.held_out, aspect)]
        assert 10 <= len(held) <= 20
    # Words that mean two things would make captions false.
    words = [thing.word for thing in shipped.things]
    assert not {*words} & {*shipped.colours, *shipped.styles, *(style.word for style in shipped.styles)}
