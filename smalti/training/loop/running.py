"""The loop that every trainer shares: steps, evaluations, sheets, checkpoints, and an end that can be resumed."""

import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal, Protocol

from PIL import Image

from smalti.training.loop.monitor import Monitor
from smalti.training.loop.run_folder import RunFolder
from smalti.training.loop.settings import RunSettings


class Trainee(Protocol):
    """What is trained, in whatever framework: the loop tells it when."""

    @property
    def tokens_per_step(self) -> int:
        """Image tokens, or whatever else the trainee counts its work in."""

    @property
    def state(self) -> Any:
        """Everything that the next step depends on, as a tree of arrays."""

    @state.setter
    def state(self, state: Any) -> None: ...

    @property
    def weights(self) -> Any:
        """What is kept of the best state: the part of it that export needs."""

    def step(self, number: int) -> Mapping[str, Any]:
        """Takes step `number`, from 0, and returns its metrics, "loss" among them."""

    def evaluate(self) -> dict[str, float]:
        """Returns metrics on held-out data; "loss" chooses the best checkpoint. Must leave the state alone."""

    def sheet(self) -> Image.Image | None:
        """Returns a picture to judge by eye, if there is one to make. Must leave the state alone."""


@dataclass(frozen=True)
class Outcome:
    """How training ended."""

    step: int
    why: Literal["finished", "time", "interrupted"]


def train(
    trainee: Trainee, settings: RunSettings, run: RunFolder, monitor: Monitor, minutes: float | None = None
) -> Outcome:
    """Trains from the run's newest checkpoint, or from the start, until the schedule or the time ends.

    Learning rates, batches and random numbers follow from the step alone, never from the clock: a run in two parts
    has the loss curve of a run in one. Ctrl-C ends after the step in progress, with a checkpoint.

    Args:
        trainee: what is trained; it is at its start.
        settings: when what happens.
        run: where everything is kept.
        monitor: is told how it goes.
        minutes: stop and save after so long; None for no limit.

    Raises:
        SmaltiError: a checkpoint cannot be read or written.
    """
    started = time.monotonic()
    step, best = run.newest_step or 0, run.best_loss
    if run.newest_step is not None:
        trainee.state = run.restore(trainee.state)
    run.cut_log(step)
    saved = step
    with _interruptible() as interrupted, monitor.watch(step, minutes):
        over = False
        while step < settings.steps and not over:
            monitor.step_taken(trainee.step(step))
            step += 1
            last = step == settings.steps
            if step % settings.log_every == 0 or last:
                monitor.log(step)
            over = interrupted() or (minutes is not None and time.monotonic() - started > 60 * minutes)
            with monitor.aside():
                if step % settings.evaluate_every == 0 or last:
                    measured = trainee.evaluate()
                    monitor.log_evaluation(step, measured)
                    if measured["loss"] < best and math.isfinite(measured["loss"]):
                        best = measured["loss"]
                        run.save_best(step, trainee.weights, best)
                if (step % settings.sheet_every == 0 or last) and (sheet := trainee.sheet()) is not None:
                    monitor.show(step, sheet)
                if step % settings.save_every == 0 or last or over:
                    run.save(step, trainee.state)
                    saved = step
    if step == settings.steps:
        return Outcome(saved, "finished")
    return Outcome(saved, "interrupted" if interrupted() else "time")


@contextmanager
def _interruptible() -> "Iterator[Any]":
    """Gives a function that tells whether Ctrl-C was pressed or the process told to end; a second one ends at once."""
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = {number: signal.signal(number, press) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: pressed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
