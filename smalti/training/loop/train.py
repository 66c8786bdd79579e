"""The loop that every trainer shares: steps, evaluations, sheets, checkpoints, and an end that can be resumed."""

import math
import time
from dataclasses import dataclass
from typing import Literal

from smalti.entrance import signals
from smalti.errors import SmaltiError
from smalti.training.loop.monitor import Monitor
from smalti.training.loop.run_folder import RunFolder
from smalti.training.loop.settings import RunSettings
from smalti.training.loop.trainee import Trainee


@dataclass(frozen=True)
class TrainingEnd:
    """The end of a training run."""

    step: int
    """Step of the newest checkpoint."""
    reason: Literal["finished", "time", "interrupted"]


def train(
    trainee: Trainee, settings: RunSettings, run: RunFolder, monitor: Monitor, minutes: float | None = None
) -> TrainingEnd:
    """Trains from the run's newest checkpoint, or from the start, until the schedule or the time ends.

    Learning rates, batches and random numbers depend on the step alone, never on the clock: a run in two parts has
    the loss curve of a run in one. Ctrl-C ends training after the current step, with a checkpoint; a second one ends
    the process within seconds.

    Args:
        trainee: the network, in its untrained state.
        settings: number of steps, and the intervals between evaluations, sheets and checkpoints.
        run: where checkpoints and the log are kept.
        monitor: shows and logs the progress.
        minutes: time after which to save and stop; None for no limit.

    Raises:
        SmaltiError: a checkpoint cannot be read or written, or the loss is not finite; no checkpoint is written after
            such a loss.
    """
    started = time.monotonic()
    if run.newest_step is not None:
        trainee.state = run.restore(trainee.state)
    step, best = run.newest_step or 0, run.best_value
    run.cut_log(step)
    saved = step
    with signals.deferred() as stopping, monitor.watch(step, minutes):
        over = False
        while step < settings.steps and not over:
            monitor.step_taken(trainee.step(step))
            step += 1
            last = step == settings.steps
            logs = step % settings.log_every == 0 or last
            over = stopping.requested or (minutes is not None and time.monotonic() - started > 60 * minutes)
            # Only then, since it waits for the device.
            looks = logs or over or step % settings.evaluate_every == 0 or step % settings.save_every == 0
            unsound = monitor.unsound_step(step) if looks else None
            if logs:
                monitor.log(step)
            _check(unsound, saved)
            with monitor.aside():
                if step % settings.evaluate_every == 0 or last:
                    measured = trainee.evaluate()
                    monitor.log_evaluation(step, measured)
                    value = float(-step) if trainee.keeps_newest else measured["loss"]
                    if value < best and math.isfinite(measured["loss"]):
                        best = value
                        run.save_best(step, trainee.weights, best)
                if (step % settings.sheet_every == 0 or last) and (sheet := trainee.sheet()) is not None:
                    monitor.show(step, sheet)
                if step % settings.save_every == 0 or last or over:
                    run.save(step, trainee.state)
                    saved = step
    if step == settings.steps:
        return TrainingEnd(saved, "finished")
    return TrainingEnd(saved, "interrupted" if stopping.requested else "time")


def _check(unsound: int | None, saved: int) -> None:
    """Raises `SmaltiError` if the loss of a step was not finite: all weights after it are lost."""
    if unsound is not None:
        kept = (
            f"the newest checkpoint is from before, of step {saved}"
            if saved
            else "there is no checkpoint yet"
        )
        raise SmaltiError(
            f"the loss of step {unsound} is not finite, so training stops; {kept}. A resumed run would come to the "
            "same end: start a new one with a smaller learning rate"
        )
