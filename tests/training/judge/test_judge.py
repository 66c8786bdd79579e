"""The judge: damage, samples and accuracy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smalti.models.vqgan import VQGAN
from smalti.training.data.world.attributes import Attributes, Figure
from smalti.training.data.world.composition import CompositionDataset, World, compose
from smalti.training.data.world.lookalikes import acceptable_colours
from smalti.training.judge.damage import DAMAGES, damage, erase, figure, ground_of
from smalti.training.judge.network import Judge, JudgeSizes, accuracy, counts_of
from smalti.training.judge.samples import SampleMaker, round_trip, scaled, view
from smalti.training.trainers.judge import JudgeObjective


def test_a_things_own_colours_may_look_like_a_tint_and_tints_never_do(world: World) -> None:
    alike = acceptable_colours(world)
    every = range(len(world.colours))
    assert alike[:, every, every].all()
    tints = alike[:, 1:, 1:]
    assert tints.sum() == len(world.things) * (len(every) - 1)
    # The ball of both packages is red, in nearly the red of the world; the box is not.
    at = [world.things.index(thing) for thing in ("ball", "box")]
    red = world.colours.index("red")
    assert alike[at[0], 0].tolist() == [True, *(colour == "red" for colour in world.colours[1:])]
    assert not alike[at[1], 0, red]


def test_damage_keeps_the_background_and_mostly_the_colour(world: World) -> None:
    numbers = np.random.default_rng(0)
    alone = Attributes((Figure("box", "blue"),), "plain", "gray")
    picture = compose(world, alone)
    other = compose(world, replace(alone, figures=(Figure("star", "blue"),)))
    for name, (_, way) in DAMAGES.items():
        damaged = way(picture, other, numbers)
        assert damaged.shape == picture.shape
        assert damaged.dtype == np.uint8
        assert (ground_of(damaged) == ground_of(picture)).all(), name
        changed = (damaged != picture).any(-1)
        assert changed.sum() > 0.15 * figure(picture).sum(), name
        if way is not erase:
            visible = damaged[figure(damaged)].astype(int)
            assert (visible[:, 2] > visible[:, 0]).mean() > 0.9, name
    assert sum(share for share, _ in DAMAGES.values()) == pytest.approx(1)
    assert (damage(picture, other, numbers) != picture).any()


def test_half_of_a_pair_is_a_picture_of_one_small_thing(world: World) -> None:
    pair = compose(world, Attributes((Figure("box"), Figure("star", "red")), "plain", "gray", "small"))
    for place, thing in (("left", Figure("box")), ("right", Figure("star", "red"))):
        small = compose(world, Attributes((thing,), "plain", "gray", "small"))
        np.testing.assert_array_equal(view(pair, place), small)  # type: ignore[arg-type]
    assert view(pair, "whole") is pair


def test_samples_say_what_they_show(world: World, network: VQGAN) -> None:
    acceptable = acceptable_colours(world)
    maker = SampleMaker(world, acceptable)
    plain = maker.exact(range(30), 64, "held_out")
    pictures, _, drawn = CompositionDataset(world, 0, "held_out", maker.can_be_judged).batch(0, 30)
    pairs = 0
    for row, (picture, attributes) in enumerate(zip(pictures, drawn, strict=True)):
        views = [view(picture, side) for side in ("left", "right")]
        pair = len(attributes.figures) == 2
        pairs += pair
        at = [index for index in (0, 1) if (plain.pixels[row] == views[index]).all()] if pair else [0]
        if not pair:
            assert (plain.pixels[row] == picture).all()
        meant = attributes.figures[at[0]]
        assert plain.things[row] == world.things.index(meant.thing)
        assert plain.colours[row, world.colours.index(meant.colour)]
        assert plain.backgrounds[row] == world.backgrounds.index(attributes.background)
    assert pairs > 3
    back = maker.exact(range(30), 64, "held_out", network)
    single = next(row for row, attributes in enumerate(drawn) if len(attributes.figures) == 1)
    np.testing.assert_array_equal(back.pixels[single], round_trip(network, pictures[[single]])[0])
    damaged = maker.exact(range(30), 64, "held_out", damaged=True)
    assert (damaged.things == len(world.things)).all()
    assert (damaged.backgrounds == plain.backgrounds).all()
    assert (damaged.meant == plain.things).all()
    assert damaged.small.tolist() == [attributes.size == "small" for attributes in drawn]
    few = damaged.take(damaged.small)
    assert len(few.pixels) == len(few.meant) == damaged.small.sum()


def test_a_sample_depends_on_its_index_alone(world: World) -> None:
    maker = SampleMaker(world, acceptable_colours(world), damaged=0.4)
    whole, part = maker.fresh(1, range(20), 64), maker.fresh(1, range(12, 15), 64)
    np.testing.assert_array_equal(whole.pixels[12:15], part.pixels)
    np.testing.assert_array_equal(whole.things[12:15], part.things)
    assert 3 < (whole.things == len(world.things)).sum() < 17


def test_accuracy_is_counted(world: World) -> None:
    samples = SampleMaker(world, acceptable_colours(world)).exact(range(5), 64, "held_out")
    sizes, counts = JudgeSizes(width=16, blocks=(1, 1, 1)), counts_of(world.description)
    # With all weights zero the judge says the first thing, colour and background, and that nothing is whole.
    params = jax.tree.map(jnp.zeros_like, JudgeObjective(sizes, counts).initialize()[0])
    measured = accuracy(Judge(sizes, counts, params), samples)
    assert (measured.pictures, measured.thing) == (5, 0)
    assert measured.fooled == 0
    assert measured.background == (samples.backgrounds == 0).mean()
    assert measured.colour == samples.colours[:, 0].mean()


def test_pictures_of_another_size_are_scaled() -> None:
    pictures = np.zeros((2, 128, 128, 3), np.uint8)
    pictures[1] = 200
    assert scaled(pictures, 64).shape == (2, 64, 64, 3)
    assert (scaled(pictures, 64)[1] == 200).all()
    assert scaled(pictures, 128) is pictures
