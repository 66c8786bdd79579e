"""Training the judge: its loss, that it learns, and that a resumed run continues exactly."""

import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness.paths import RUNS, SAMPLES
from smalti.cli import run
from smalti.errors import InvalidInputError
from smalti.models.vqgan import VQGAN
from smalti.training.data.world.attributes import Attributes, Figure
from smalti.training.data.world.composition import World, compose
from smalti.training.data.world.description import load_description
from smalti.training.data.world.sprites import make_sprites
from smalti.training.judge.network import heads_of
from smalti.training.loop.settings import load_settings
from smalti.training.loop.step import TrainState
from smalti.training.trainers.judge import JudgeObjective, JudgeSettings, JudgeTrainee, load_judge

SETTINGS = JudgeSettings.check(
    steps=40, batch_size=8, held_out=6, round_trips=12, seed=3,
    model={"width": 16, "blocks": (1, 1, 1)}, optimizer={"warmup_steps": 2},
)  # fmt: skip


def test_the_loss_is_the_sum_of_its_parts(world: World) -> None:
    objective = JudgeObjective(SETTINGS.model, heads_of(world.description))
    # With all weights zero every class has the same probability.
    shapes = jax.eval_shape(lambda: objective.initialize()[0])
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    batch = {
        "pixels": jnp.zeros((2, 64, 64, 3), jnp.uint8),
        "things": jnp.array([1, 6]),
        "colours": jnp.array([[True, True, False, False, False], [True] * 5]),
        "backgrounds": jnp.array([0, 3]),
        "styles": jnp.array([1, -1]),
        "counts": jnp.array([-1, -1]),
        "relations": jnp.array([0, 3]),
    }
    _, (losses, _) = jax.jit(objective.loss)(params, batch)
    # The second is damaged, so its thing does not count. Two of five colours are right, then all four.
    assert float(losses["thing"]) == pytest.approx(np.log(6) / 2, rel=1e-5)
    assert float(losses["whole"]) == pytest.approx(np.log(2), rel=1e-5)
    assert float(losses["colour"]) == pytest.approx(np.log(5 / 2) / 2, rel=1e-5)
    assert float(losses["background"]) == pytest.approx(np.log(len(world.backgrounds)), rel=1e-5)
    # Half of the styles and none of the numbers are told.
    assert float(losses["style"]) == pytest.approx(np.log(2) / 2, rel=1e-5)
    assert float(losses["count"]) == 0
    assert float(losses["relation"]) == pytest.approx(np.log(4), rel=1e-5)


def test_a_few_steps_learn_and_a_resumed_run_continues_exactly(world: World, network: VQGAN) -> None:
    whole = JudgeTrainee(SETTINGS, {64: world}, network)
    before = whole.evaluate()
    losses = [float(whole.step(number)["loss"]) for number in range(4)]
    halfway = TrainState(*jax.device_get(whole.state))
    losses += [float(whole.step(number)["loss"]) for number in range(4, 16)]
    after = whole.evaluate()
    assert after["loss"] < before["loss"]
    assert {"plain_thing", "tokens_colour", "damaged_background"} < set(after)
    assert whole.sheet().size == (16 * 66 + 2, 4 * 66 + 2)

    # Other processes, whose batches these are on a GPU, get the function as bytes.
    made = pickle.loads(pickle.dumps(whole._batch._make))
    assert all(np.array_equal(made(4)[name], rows) for name, rows in whole._batch._make(4).items())

    resumed = JudgeTrainee(SETTINGS, {64: world}, network)
    resumed.state = halfway
    assert [float(resumed.step(number)["loss"]) for number in range(4, 16)] == losses[4:]


def test_the_shipped_run_is_of_a_possible_network() -> None:
    settings = load_settings(RUNS / "pictograms-judge.toml", JudgeSettings)
    objective = JudgeObjective(settings.model, heads_of(load_description()))
    weights = jax.tree.leaves(jax.eval_shape(lambda: objective.initialize()[0]))
    assert 0.5e6 < sum(leaf.size for leaf in weights) < 2e6


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
