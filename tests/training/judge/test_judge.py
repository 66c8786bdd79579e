"""The judge: what it learns from, that it learns, and that a resumed run goes on exactly."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness.paths import RUNS, SAMPLES
from smalti.cli import run
from smalti.errors import InvalidInputError
from smalti.models import vqgan
from smalti.models.vqgan import VQGAN
from smalti.testing.model import TINY_VQGAN_64
from smalti.training.data.world.attributes import Attributes, Figure
from smalti.training.data.world.composition import CompositionDataset, World, compose
from smalti.training.data.world.description import read_description
from smalti.training.data.world.lookalikes import acceptable_colours
from smalti.training.data.world.sprites import make_sprites
from smalti.training.judge.damage import DAMAGES, damage, erase, figure, ground_of
from smalti.training.judge.network import Judge, accuracy, counts_of
from smalti.training.judge.samples import SampleMaker, round_trip, scaled, view
from smalti.training.judge.trainer import JudgeSettings, JudgeTask, JudgeTrainee, load_judge
from smalti.training.loop.settings import read_settings
from smalti.training.loop.step import State

SETTINGS = JudgeSettings.check(
    steps=40, batch_size=8, held_out=6, round_trips=12, seed=3,
    model={"width": 16, "blocks": (1, 1, 1)}, optimizer={"warmup_steps": 2},
)  # fmt: skip


@pytest.fixture(scope="module")
def world() -> World:
    description = read_description(SAMPLES / "world.json")
    return World(description, make_sprites(SAMPLES / "packages", description, 64))


@pytest.fixture(scope="module")
def network() -> VQGAN:
    return VQGAN(TINY_VQGAN_64, vqgan.initialize(TINY_VQGAN_64, jax.random.key(0)))


def test_a_things_own_colours_may_look_like_a_tint_and_tints_never_do(world: World) -> None:
    alike = acceptable_colours(world)
    assert alike[:, range(4), range(4)].all()
    tints = alike[:, 1:, 1:]
    assert tints.sum() == len(world.things) * 3
    # The ball of both packages is red, in nearly the red of the world; the box is not.
    at = [world.things.index(thing) for thing in ("ball", "box")]
    red = world.colours.index("red")
    assert alike[at[0], 0].tolist() == [True, *(colour == "red" for colour in world.colours[1:])]
    assert not alike[at[1], 0, red]


def test_every_damage_keeps_the_background_and_most_of_it_the_colour(world: World) -> None:
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


def test_samples_say_what_is_on_them(world: World, network: VQGAN) -> None:
    acceptable = acceptable_colours(world)
    maker = SampleMaker(world, acceptable)
    plain = maker.exact(range(30), 64, "held_out")
    pictures, _, drawn = CompositionDataset(world, 0, "held_out").batch(0, 30)
    pairs = 0
    for row, (picture, attributes) in enumerate(zip(pictures, drawn, strict=True)):
        places = [view(picture, place) for place in ("left", "right")]
        pair = len(attributes.figures) == 2
        pairs += pair
        at = [place for place in (0, 1) if (plain.pixels[row] == places[place]).all()] if pair else [0]
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


def test_the_loss_counts_what_it_says(world: World) -> None:
    task = JudgeTask(SETTINGS.model, counts_of(world.description))
    params, _ = task.initialize()
    # With all weights zero every class has the same probability.
    params = jax.tree.map(jnp.zeros_like, params)
    batch = {
        "pixels": jnp.zeros((2, 64, 64, 3), jnp.uint8),
        "things": jnp.array([1, 6]),
        "colours": jnp.array([[True, True, False, False], [True, True, True, True]]),
        "backgrounds": jnp.array([0, 3]),
    }
    _, (losses, _) = task.loss(params, batch)
    # The second is damaged, so nobody asks for its thing; of four colours two are right, then all four.
    assert float(losses["thing"]) == pytest.approx(np.log(6) / 2, rel=1e-5)
    assert float(losses["whole"]) == pytest.approx(np.log(2), rel=1e-5)
    assert float(losses["colour"]) == pytest.approx(np.log(2) / 2, rel=1e-5)
    assert float(losses["background"]) == pytest.approx(np.log(4), rel=1e-5)


def test_a_few_steps_learn_and_a_resumed_run_goes_on_exactly(world: World, network: VQGAN) -> None:
    whole = JudgeTrainee(SETTINGS, {64: world}, network)
    before = whole.evaluate()
    losses = [float(whole.step(number)["loss"]) for number in range(4)]
    halfway = State(*jax.device_get(whole.state))
    losses += [float(whole.step(number)["loss"]) for number in range(4, 16)]
    after = whole.evaluate()
    assert after["loss"] < before["loss"]
    assert {"plain_thing", "tokens_colour", "damaged_background"} < set(after)
    assert whole.sheet().size == (16 * 66 + 2, 4 * 66 + 2)

    resumed = JudgeTrainee(SETTINGS, {64: world}, network)
    resumed.state = halfway
    assert [float(resumed.step(number)["loss"]) for number in range(4, 16)] == losses[4:]


def test_accuracy_is_counted(world: World) -> None:
    samples = SampleMaker(world, acceptable_colours(world)).exact(range(5), 64, "held_out")
    task = JudgeTask(SETTINGS.model, counts_of(world.description))
    # With all weights zero it says the first thing, colour and background, and that nothing is whole.
    params = jax.tree.map(jnp.zeros_like, task.initialize()[0])
    measured = accuracy(Judge(SETTINGS.model, counts_of(world.description), params), samples)
    assert (measured.pictures, measured.thing) == (5, 0)
    assert measured.fooled == 0
    assert measured.background == (samples.backgrounds == 0).mean()
    assert measured.colour == samples.colours[:, 0].mean()


def test_the_shipped_run_is_of_a_possible_network() -> None:
    settings = read_settings(RUNS / "pictograms-judge.toml", JudgeSettings)
    task = JudgeTask(settings.model, counts_of(read_description()))
    weights = jax.tree.leaves(jax.eval_shape(lambda: task.initialize()[0]))
    assert 0.5e6 < sum(leaf.size for leaf in weights) < 2e6


def test_pictures_of_another_size_are_scaled() -> None:
    pictures = np.zeros((2, 128, 128, 3), np.uint8)
    pictures[1] = 200
    assert scaled(pictures, 64).shape == (2, 64, 64, 3)
    assert (scaled(pictures, 64)[1] == 200).all()
    assert scaled(pictures, 128) is pictures


RUN = """
trains = "judge"
steps = 2
batch_size = 4
held_out = 4
round_trips = 4
evaluate_every = 2
[model]
width = 16
"""


def test_the_command_trains_a_judge_that_can_be_loaded(
    tmp_path: Path, world: World, network: VQGAN, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "world.json").write_bytes((SAMPLES / "world.json").read_bytes())
    make_sprites(SAMPLES / "packages", world.description, 64).save(data / "sprites.npz")
    network.save(tmp_path / "vqgan")
    (tmp_path / "judge.toml").write_text(RUN)
    words = ["train", "judge", "--config", f"{tmp_path}/judge.toml", "--vqgan", f"{tmp_path}/vqgan"]
    out = tmp_path / "run"
    assert run([*words, "--data", str(data), "--out", str(out)]) == 0
    assert "finished after 2 steps" in capsys.readouterr().out
    judge = load_judge(out, world.description)
    assert judge.look(compose(world, Attributes((Figure("box"),), "plain"))[None]).things.shape == (1,)

    other = world.description.model_copy(update={"things": world.description.things[1:]})
    with pytest.raises(InvalidInputError, match="knows another world"):
        load_judge(out, other)
    (tmp_path / "empty").mkdir()
    assert run([*words, "--data", f"{tmp_path}/empty", "--out", f"{tmp_path}/other"]) == 2
    assert "has no world; make one with `smalti data build`" in capsys.readouterr().err
