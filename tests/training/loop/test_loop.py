"""The shared loop: a run in parts equals a run in one, and nothing is lost."""

import json
import math
import os
import resource
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from rich.console import Console

from smalti.errors import CheckpointError, InvalidInputError, SmaltiError, SmaltiWarning
from smalti.models.layers import Parameters
from smalti.training.loop.monitor import Monitor
from smalti.training.loop.run_folder import RunFolder, load_best, load_run_settings
from smalti.training.loop.settings import RunSettings
from smalti.training.loop.step import TrainState
from smalti.training.loop.train import TrainingEnd, train

pytestmark = [
    pytest.mark.usefixtures("orbax_leftovers"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class LineSettings(RunSettings):
    """Settings of the smallest trainee."""

    trains: str = "tokenizer"  # type: ignore[assignment]


class Line:
    """Fits a line to noisy points, with given held-out losses."""

    tokens_per_step = 4
    keeps_newest = False

    def __init__(self, seed: int = 0, width: int = 3, press: int | None = None) -> None:
        self.optimizer = optax.adam(0.1)
        params = {"w": jnp.zeros(width)}
        self.state = TrainState(jnp.int32(0), params, self.optimizer.init(params), {})
        self.seed, self.width, self.press = seed, width, press
        self.losses = [3.0, 1.0, 2.0, 1.5]

    @property
    def weights(self) -> Parameters:
        return self.state.params

    def step(self, number: int) -> dict[str, jax.Array]:
        if number == self.press:
            os.kill(os.getpid(), signal.SIGINT)
        points = jax.random.normal(jax.random.fold_in(jax.random.key(self.seed), number), (4, self.width))

        def loss(params: dict[str, jax.Array]) -> jax.Array:
            return jnp.square(points @ params["w"] - points.sum(1)).mean()

        value, gradient = jax.value_and_grad(loss)(self.state.params)
        updates, optimizer = self.optimizer.update(gradient, self.state.optimizer, self.state.params)
        params = optax.apply_updates(self.state.params, updates)
        self.state = TrainState(self.state.step + 1, params, optimizer, {})
        return {"loss": value}

    def evaluate(self) -> dict[str, float]:
        return {"loss": self.losses[int(self.state.step) // 4 - 1]}

    def sheet(self) -> Image.Image:
        return Image.new("RGB", (4, 4), (int(self.state.step), 0, 0))


SETTINGS = """
trains = "tokenizer"
steps = 16
batch_size = 4
log_every = 1
evaluate_every = 4
save_every = 4
sheet_every = 8
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "line.toml"
    path.write_text(SETTINGS)
    return path


@pytest.fixture
def settings() -> LineSettings:
    return LineSettings(steps=16, batch_size=4, log_every=1, evaluate_every=4, save_every=4, sheet_every=8)


def run_line(
    out: Path,
    file: Path,
    settings: LineSettings,
    line: Line,
    *,
    resume: bool = False,
    minutes: float | None = None,
) -> TrainingEnd:
    run = RunFolder.resume(out, settings) if resume else RunFolder.create(out, file)
    try:
        console = Console(stderr=True, quiet=True)
        monitor = Monitor(run, settings, tokens_per_step=line.tokens_per_step, console=console)
        return train(line, settings, run, monitor, minutes)
    finally:
        run.close()


def curve(run: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [(record["step"], record["train/loss"]) for record in records if "train/loss" in record]
    assert len(dict(losses)) == len(losses), "a step is in the log twice"
    return dict(losses)


def test_a_run_in_parts_has_the_curve_of_a_run_in_one(
    tmp_path: Path, file: Path, settings: LineSettings
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_line(whole, file, settings, Line()) == TrainingEnd(16, "finished")
    # The time is over at once, so each part takes one step.
    assert run_line(parts, file, settings, Line(), minutes=0) == TrainingEnd(1, "time")
    for step in (2, 3):
        assert run_line(parts, file, settings, Line(), resume=True, minutes=0) == TrainingEnd(step, "time")
    assert run_line(parts, file, settings, Line(), resume=True) == TrainingEnd(16, "finished")
    assert curve(parts) == curve(whole)
    assert len(curve(whole)) == 16
    for name in ("checkpoints", "best"):
        assert sorted(path.name for path in (parts / name).iterdir()) == sorted(
            path.name for path in (whole / name).iterdir()
        )


def test_a_killed_run_continues_from_its_newest_checkpoint(
    tmp_path: Path, file: Path, settings: LineSettings
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_line(whole, file, settings, Line())

    class Killed(Line):
        def step(self, number: int) -> dict[str, jax.Array]:
            if number == 10:
                raise RuntimeError("killed")
            return super().step(number)

    with pytest.raises(RuntimeError, match="killed"):
        run_line(killed, file, settings, Killed())
    assert max(curve(killed)) == 10
    # Steps 9 and 10 are in no checkpoint, so they are repeated.
    assert run_line(killed, file, settings, Line(), resume=True) == TrainingEnd(16, "finished")
    assert curve(killed) == curve(whole)


def test_ctrl_c_saves_and_stops(tmp_path: Path, file: Path, settings: LineSettings) -> None:
    before = signal.getsignal(signal.SIGINT)
    assert run_line(tmp_path / "run", file, settings, Line(press=5)) == TrainingEnd(6, "interrupted")
    assert signal.getsignal(signal.SIGINT) is before
    assert run_line(tmp_path / "run", file, settings, Line(), resume=True) == TrainingEnd(16, "finished")


def test_the_best_checkpoint_is_that_of_the_smallest_held_out_loss(
    tmp_path: Path, file: Path, settings: LineSettings
) -> None:
    out = tmp_path / "run"
    line = Line()
    like = jax.eval_shape(lambda: line.weights)
    run_line(out, file, settings, line)
    best = load_best(out, like)
    # The losses are 3, 1, 2, 1.5 at the steps 4, 8, 12, 16.
    again = Line()
    for number in range(8):
        again.step(number)
    twin = again.weights["w"]
    np.testing.assert_array_equal(best["w"], twin)
    assert not np.array_equal(best["w"], line.weights["w"])


def test_a_trainee_may_keep_its_newest_weights(tmp_path: Path, file: Path, settings: LineSettings) -> None:
    class Newest(Line):
        keeps_newest = True

    run_line(tmp_path / "run", file, settings, Newest())
    assert [path.name for path in (tmp_path / "run" / "best").iterdir()] == ["16"]


def test_a_resumed_run_remembers_its_best_loss(tmp_path: Path, file: Path, settings: LineSettings) -> None:
    out = tmp_path / "run"

    class Stopped(Line):
        def step(self, number: int) -> dict[str, jax.Array]:
            if number == 9:
                os.kill(os.getpid(), signal.SIGINT)
            return super().step(number)

    run_line(out, file, settings, Stopped())
    run_line(out, file, settings, Line(), resume=True)
    assert [path.name for path in (out / "best").iterdir() if path.is_dir()] == ["8"]


def test_a_loss_that_is_not_finite_is_never_the_best(
    tmp_path: Path, file: Path, settings: LineSettings
) -> None:
    line = Line()
    line.losses = [math.nan, math.inf, 5.0, math.nan]
    run_line(tmp_path / "run", file, settings, line)
    assert [path.name for path in (tmp_path / "run" / "best").iterdir() if path.is_dir()] == ["12"]


def test_sheets_and_tensorboard_are_written(tmp_path: Path, file: Path, settings: LineSettings) -> None:
    out = tmp_path / "run"
    run_line(out, file, settings, Line())
    assert sorted(path.name for path in (out / "sheets").iterdir()) == ["000008.png", "000016.png"]
    assert Image.open(out / "sheets" / "000008.png").getpixel((0, 0)) == (8, 0, 0)
    [events] = (out / "tensorboard").iterdir()
    for tag in (b"train/loss", b"held_out/loss", b"train/tokens_per_second", b"sheet"):
        assert tag in events.read_bytes()


def test_a_new_run_leaves_an_old_one_alone(tmp_path: Path, file: Path, settings: LineSettings) -> None:
    run_line(tmp_path / "run", file, settings, Line())
    with pytest.raises(InvalidInputError, match=r"already holds a run; continue it with --resume"):
        run_line(tmp_path / "run", file, settings, Line())


def test_resuming_needs_a_run_with_the_same_settings(
    tmp_path: Path, file: Path, settings: LineSettings
) -> None:
    with pytest.raises(InvalidInputError, match="holds no run"):
        run_line(tmp_path / "none", file, settings, Line(), resume=True)
    run_line(tmp_path / "run", file, settings, Line(), minutes=0)
    other = settings.model_copy(update={"seed": 7})
    with pytest.raises(InvalidInputError, match=r"^seed: .* was started with 0; .* not 7"):
        run_line(tmp_path / "run", file, other, Line(), resume=True)


def test_a_checkpoint_of_another_model_is_refused_in_one_line(
    tmp_path: Path, file: Path, settings: LineSettings
) -> None:
    out = tmp_path / "run"
    run_line(out, file, settings, Line())
    with pytest.raises(
        CheckpointError, match=r"belongs to another model: .*/w has the shape \(3,\), not \(5,\)"
    ) as error:
        run_line(out, file, settings, Line(width=5), resume=True)
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match=r"damaged or belongs to another model"):
        load_best(out, {"v": jax.ShapeDtypeStruct((3,), jnp.float32)})


def test_a_full_disk_is_reported_in_one_line_and_leaves_the_newest_checkpoint(
    tmp_path: Path, file: Path, settings: LineSettings
) -> None:
    out = tmp_path / "run"
    run_line(out, file, settings, Line(), minutes=0)
    run = RunFolder.resume(out, settings)
    large = Line().state._replace(memory=np.random.default_rng(0).random(200_000))
    # No file may grow beyond 100 kB, which has the same effect as a full disk.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(
            SmaltiError, match=r"step 2 cannot be written .* the newest one is that of step 1"
        ) as error:
            run.save(2, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(error.value)
    assert run.newest_step == 1
    run.close()
    assert run_line(out, file, settings, Line(), resume=True) == TrainingEnd(16, "finished")


def test_two_trainings_at_once_in_one_folder_are_refused(
    tmp_path: Path, file: Path, settings: LineSettings
) -> None:
    out = tmp_path / "run"
    run = RunFolder.create(out, file)
    with pytest.raises(
        InvalidInputError, match=r"out: .* is being written by process \d+ on .* since .*; wait for its end"
    ):
        RunFolder.resume(out, settings)
    run.close()
    assert run_line(out, file, settings, Line(), resume=True) == TrainingEnd(16, "finished")


def test_half_a_line_at_the_end_of_the_log_is_removed(
    tmp_path: Path, file: Path, settings: LineSettings
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    run_line(whole, file, settings, Line())
    run_line(out, file, settings, Line(press=5))
    with (out / "metrics.jsonl").open("ab") as log:
        log.write(b'[1]\n{"step": "six"}\n\xff\x00\n{"step": 7, "train/lo')
    with pytest.warns(SmaltiWarning, match=r"metrics\.jsonl: 4 damaged lines were removed"):
        run_line(out, file, settings, Line(), resume=True)
    assert curve(out) == curve(whole)


@pytest.mark.parametrize("harm", ["truncated", "empty"])
def test_the_checkpoint_before_a_damaged_one_is_used(
    tmp_path: Path, file: Path, settings: LineSettings, harm: str
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    run_line(whole, file, settings, Line())
    run_line(out, file, settings, Line(press=9))
    steps = sorted(int(path.name) for path in (out / "checkpoints").iterdir())
    assert steps == [8, 10]
    for path in (out / "checkpoints" / "10").rglob("*"):
        if path.is_file():
            path.write_bytes(b"" if harm == "empty" else path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(SmaltiWarning, match=r"step 10 is damaged .*; the run continues .* step 8"):
        assert run_line(out, file, settings, Line(), resume=True) == TrainingEnd(16, "finished")
    assert curve(out) == curve(whole)
    # Kept, since it may be readable elsewhere.
    assert (out / "damaged" / "checkpoints-10").is_dir()
    for path in (out / "checkpoints").glob("*/**/*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"the checkpoint of step 16 is damaged"):
        run_line(out, file, settings, Line(), resume=True)


@pytest.mark.parametrize("content", [b"", b'{"loss": 1', b"[" * 50_000])
def test_a_loss_of_a_checkpoint_that_cannot_be_read_is_one_line(
    tmp_path: Path, file: Path, settings: LineSettings, content: bytes
) -> None:
    run_line(tmp_path / "run", file, settings, Line())
    [metrics] = (tmp_path / "run" / "best").glob("*/metrics/metrics")
    metrics.write_bytes(content)
    for use in (
        lambda: load_best(tmp_path / "run", {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}),
        lambda: RunFolder.resume(tmp_path / "run", settings),
    ):
        with pytest.raises(
            CheckpointError, match=r"best: a checkpoint is damaged .*move the folder away"
        ) as error:
            use()
        assert "\n" not in str(error.value)


def test_training_stops_at_a_loss_that_is_not_finite(
    tmp_path: Path, file: Path, settings: LineSettings
) -> None:
    class Diverging(Line):
        def step(self, number: int) -> dict[str, jax.Array]:
            return {"loss": super().step(number)["loss"] * (math.nan if number >= 9 else 1)}

    out = tmp_path / "run"
    with pytest.raises(SmaltiError, match=r"loss of step 10 is not finite.*newest checkpoint.* of step 8"):
        run_line(out, file, settings, Diverging())
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["4", "8"]
    # With seldom entries in the log, it is seen before the checkpoint at the latest.
    seldom = settings.model_copy(update={"log_every": 16})
    file.write_text(SETTINGS.replace("log_every = 1", "log_every = 16"))
    with pytest.raises(SmaltiError, match=r"loss of step 10 is not finite"):
        run_line(tmp_path / "seldom", file, seldom, Diverging())
    for line in (out / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_resumed_run_must_have_its_data(tmp_path: Path, file: Path, settings: LineSettings) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    (data / "train-00000.parquet").write_bytes(b"one")
    with RunFolder.create(out, file) as run:
        run.remember_data(data)
        run.keep()
    data.rename(tmp_path / "moved")
    with RunFolder.resume(out, settings) as run:
        run.remember_data(tmp_path / "moved")
        (tmp_path / "moved" / "train-00000.parquet").write_bytes(b"two")
        with pytest.raises(InvalidInputError, match=r"^data: .* began with, or has changed since"):
            run.remember_data(tmp_path / "moved")


def test_a_run_without_an_evaluation_has_nothing_to_export(
    tmp_path: Path, file: Path, settings: LineSettings
) -> None:
    run_line(tmp_path / "run", file, settings, Line(), minutes=0)
    with pytest.raises(InvalidInputError, match="has no evaluated checkpoint yet"):
        load_best(tmp_path / "run", {"w": jax.ShapeDtypeStruct((3,), jnp.float32)})
    assert load_run_settings(tmp_path / "run", LineSettings).steps == 16
