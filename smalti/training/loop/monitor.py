"""Progress of a run: a bar or lines on the console, the log, TensorBoard, and sample sheets."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from tensorboardX import SummaryWriter

from smalti.files import atomic_path
from smalti.training.loop.run_folder import RunFolder
from smalti.training.loop.settings import RunSettings


class Monitor:
    """Shows the progress of a run, and writes it to the run's folder."""

    def __init__(
        self, run: RunFolder, settings: RunSettings, *, tokens_per_step: int, console: Console
    ) -> None:
        """Makes the monitor.

        Args:
            run: folder of the run, for the log, TensorBoard and the sheets.
            settings: settings of the run.
            tokens_per_step: work of one step, from which the speed is computed.
            console: shows a bar on a terminal, and a line for each log entry otherwise.
        """
        self._run = run
        self._settings = settings
        self._tokens_per_step = tokens_per_step
        self._console = console
        self._pending: list[Mapping[str, Any]] = []

    @contextmanager
    def watch(self, step: int, minutes: float | None) -> Iterator[None]:
        """Shows the bar, starting at a step, while the block runs."""
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
        )
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self._since, self._aside, self._logged = time.monotonic(), 0.0, step
        with (
            SummaryWriter(str(self._run.tensorboard), purge_step=step) as self._board,
            Progress(*columns, console=self._console, disable=not self._console.is_terminal) as self._bar,
        ):
            self._task = self._bar.add_task(
                self._settings.trains, total=self._settings.steps, completed=step, status=""
            )
            yield

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Excludes the time of the block from the speed, since an evaluation is not training."""
        began = time.monotonic()
        yield
        self._aside += time.monotonic() - began

    def step_taken(self, metrics: Mapping[str, Any]) -> None:
        """Counts a step. Its metrics are read only by the next `log`, so that the device does not wait."""
        self._pending.append(metrics)
        self._bar.update(self._task, advance=1)

    def unsound_step(self, step: int) -> int | None:
        """Returns the first step since the last `log` whose loss is not finite; None if there is none.

        Args:
            step: the step that was taken last.
        """
        first = step - len(self._pending) + 1
        losses = enumerate((metrics["loss"] for metrics in self._pending), start=first)
        return next((number for number, loss in losses if not np.isfinite(np.asarray(loss)).all()), None)

    def log(self, step: int) -> None:
        """Logs the means since the last call, with the speed and the remaining time."""
        names = self._pending[0].keys()
        means = {name: float(np.mean([np.asarray(each[name]) for each in self._pending])) for name in names}
        self._pending.clear()
        now = time.monotonic()
        pace = (now - self._since - self._aside) / (step - self._logged)
        self._since, self._aside, self._logged = now, 0.0, step
        left = pace * (self._settings.steps - step)
        if self._deadline is not None:
            left = min(left, max(self._deadline - now, 0))
        speed, counted = self._tokens_per_step / pace, self._settings.counted
        status = f"loss {means['loss']:.4f}  {speed:,.0f} {counted}/s  {_duration(left)} left"
        self._bar.update(self._task, status=status)
        self._print(f"step {step:,} of {self._settings.steps:,}  {status}")
        self._write("train", step, {**means, f"{counted}_per_second": speed})

    def log_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs metrics on held-out data."""
        shown = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in metrics.items())
        self._console.print(f"step {step:,} held out: {shown}", highlight=False, soft_wrap=True)
        self._write("held_out", step, metrics)

    def show(self, step: int, sheet: Image.Image) -> None:
        """Writes a sheet as a file and to TensorBoard."""
        with atomic_path(self._run.sheets / f"{step:06}.png") as partial:
            sheet.save(partial, "PNG")
        self._board.add_image("sheet", np.asarray(sheet.convert("RGB")), step, dataformats="HWC")

    def _print(self, line: str) -> None:
        if not self._console.is_terminal:
            self._console.print(line, highlight=False, soft_wrap=True)

    def _write(self, group: str, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._board.add_scalar(f"{group}/{name}", value, step)
        self._run.append({"step": step, **{f"{group}/{name}": value for name, value in metrics.items()}})


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
