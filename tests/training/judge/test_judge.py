"""The judge: damage, samples and accuracy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smalti.models.vqgan import VQGAN
from smalti.training.data.world.attributes import Attributes, Figure
from smalti.training.data.world.composition import CompositionDataset, World, compose
from smalti.training.data.world.description import RELATIONS, SIZES
from smalti.training.data.world.lookalikes import acceptable_colours
from smalti.training.judge.damage import DAMAGES, damage, erase, figure
from smalti.training.judge.network import Judge, JudgeSizes, accuracy, heads_of
from smalti.training.judge.samples import SampleMaker, round_trip, scaled
from smalti.training.judge.views import PAIR_REGIONS, REGIONS, box, ground_of, paste, view
from smalti.training.trainers.judge import JudgeObjective


def test_a_things_own_colours_may_look_like_a_tint_and_tints_never_do(world: World) -> None:
    alike = acceptable_colours(world)
    count = len(world.colours)
    assert alike[:, range(count), range(count)].all()
    tints = alike[:, 1:, 1:]
    assert tints.sum() == len(world.things) * (count - 1)
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
    ground = world.ground("gray").transpose(1, 2, 0)
    for name, (_, way) in DAMAGES.items():
        damaged = way(picture, other, ground, numbers)
        assert damaged.shape == picture.shape
        assert damaged.dtype == np.uint8
        assert (ground_of(damaged) == ground_of(picture)).all(), name
        changed = (damaged != picture).any(-1)
        assert changed.sum() > 0.15 * figure(picture, ground).sum(), name
        if way is not erase:
            visible = damaged[figure(damaged, ground)].astype(int)
            assert (visible[:, 2] > visible[:, 0]).mean() > 0.9, name
    assert sum(share for share, _ in DAMAGES.values()) == pytest.approx(1)
    assert (damage(picture, other, ground, numbers) != picture).any()


def test_part_of_a_pair_is_a_picture_of_one_small_thing(world: World) -> None:
    pair = Attributes((Figure("box"), Figure("star", "red")), "plain", "gray", "small")
    for relation in ("beside", "above"):
        picture = compose(world, replace(pair, relation=relation))
        for region, thing in zip(PAIR_REGIONS[relation], pair.figures, strict=True):
            small = compose(world, Attributes((thing,), "plain", "gray", "small"))
            np.testing.assert_array_equal(view(picture, region), small)
    assert view(picture, "whole") is picture


def test_the_thing_in_front_is_wholly_in_its_view(world: World) -> None:
    pair = Attributes(
        (Figure("box", "red"), Figure("tree")), "plain", "gray", "small", relation="in front of"
    )
    front, behind = (
        compose(world, pair),
        compose(world, replace(pair, figures=(Figure("box", "blue"), Figure("tree")))),
    )
    changed = (front != behind).any(-1)
    in_view = changed[box("front", 64)]
    assert changed.sum() == in_view.sum() > 100


def test_a_changed_view_can_be_put_back(world: World) -> None:
    picture = compose(world, Attributes((Figure("box"), Figure("star")), "plain", "gray", "small"))
    for region in REGIONS:
        seen = view(picture, region)
        np.testing.assert_array_equal(paste(picture, seen, region), picture)
        black = paste(picture, np.zeros_like(seen), region)
        assert not black[box(region, 64)].any()
        assert (black != 0).any(-1).sum() == 64 * 64 - black[box(region, 64)][..., 0].size


def test_samples_say_what_they_show(world: World, network: VQGAN) -> None:
    maker = SampleMaker(world, acceptable_colours(world))
    plain = maker.exact(range(60), 64, "held_out")
    pictures, _, drawn = CompositionDataset(world, 0, "held_out").batch(0, 60)
    none, pairs, whole_pairs = len(world.things), 0, 0
    for row, (picture, attributes) in enumerate(zip(pictures, drawn, strict=True)):
        assert plain.backgrounds[row] == world.backgrounds.index(attributes.background)
        shown = plain.pixels[row]
        if not attributes.is_pair:
            assert (shown == picture).all()
            assert (plain.counts[row], plain.relations[row]) == (attributes.count - 1, len(RELATIONS))
            meant = attributes.figures[0]
        elif plain.meant[row] < 0:
            whole_pairs += 1
            assert (shown == picture).all()
            assert plain.relations[row] == RELATIONS.index(attributes.relation)
            assert plain.things[row] == none
            continue
        else:
            pairs += 1
            regions = PAIR_REGIONS[attributes.relation]
            which = next(index for index in (0, 1) if (shown == view(picture, regions[index])).all())
            meant = attributes.figures[which]
            whole = regions[which] == "whole"
            assert plain.relations[row] == (RELATIONS.index(attributes.relation) if whole else -1)
            assert plain.counts[row] == -1
        assert plain.things[row] == world.things.index(meant.thing)
        assert plain.colours[row, world.colours.index(meant.colour)]
        assert plain.styles[row] == world.styles.index(attributes.style)
    assert pairs > 3
    assert whole_pairs > 1
    back = maker.exact(range(60), 64, "held_out", network)
    single = next(row for row, attributes in enumerate(drawn) if not attributes.is_pair)
    np.testing.assert_array_equal(back.pixels[single], round_trip(network, pictures[[single]])[0])
    damaged = maker.exact(range(60), 64, "held_out", damaged=True)
    assert (damaged.things == none).all()
    assert (damaged.backgrounds == plain.backgrounds).all()
    assert (damaged.meant == plain.meant).all()
    few = damaged.take(damaged.sizes == SIZES.index("small"))
    assert len(few.pixels) == len(few.meant) == (damaged.sizes == SIZES.index("small")).sum()


def test_a_sample_depends_on_its_index_alone(world: World) -> None:
    maker = SampleMaker(world, acceptable_colours(world), damaged=0.4)
    whole, part = maker.fresh(1, range(20), 64), maker.fresh(1, range(12, 15), 64)
    np.testing.assert_array_equal(whole.pixels[12:15], part.pixels)
    np.testing.assert_array_equal(whole.things[12:15], part.things)
    assert 3 < (whole.things == len(world.things)).sum() < 17


def test_accuracy_is_counted(world: World) -> None:
    samples = SampleMaker(world, acceptable_colours(world)).exact(range(40), 64, "held_out")
    sizes, heads = JudgeSizes(width=16, blocks=(1, 1, 1)), heads_of(world.description)
    # With all weights zero the judge says the first of all classes, and that nothing is whole.
    params = jax.tree.map(jnp.zeros_like, JudgeObjective(sizes, heads).initialize()[0])
    measured = accuracy(Judge(sizes, heads, params), samples)
    assert (measured.pictures, measured.thing) == (40, 0)
    assert measured.fooled == 0
    assert measured.background == (samples.backgrounds == 0).mean()
    assert measured.colour == pytest.approx(samples.colours[samples.meant >= 0, 0].mean())
    told = samples.counts >= 0
    assert measured.count == pytest.approx((samples.counts[told] == 0).mean())
    assert measured.style is not None


def test_pictures_of_another_size_are_scaled() -> None:
    pictures = np.zeros((2, 128, 128, 3), np.uint8)
    pictures[1] = 200
    assert scaled(pictures, 64).shape == (2, 64, 64, 3)
    assert (scaled(pictures, 64)[1] == 200).all()
    assert scaled(pictures, 128) is pictures
