"""How far a batch is: prompts done, the rate, and the time left."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

WINDOW_SECONDS: Final = 300.0
"""The rate is that of so many seconds before."""


class Rate:
    """Counts what is done, and how fast."""

    def __init__(self) -> None:
        """Has seen nothing yet."""
        self._seen: deque[tuple[float, float]] = deque()

    def add(self, done: float, now: float | None = None) -> None:
        """Takes how much is done now; `now` is a time in seconds, None for that of the clock."""
        now = time.monotonic() if now is None else now
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] < now - WINDOW_SECONDS:
            self._seen.popleft()

    def per_second(self) -> float | None:
        """Returns how much is done a second, or None as long as it is not known."""
        if len(self._seen) < 2:
            return None
        (first, before), (last, done) = self._seen[0], self._seen[-1]
        return (done - before) / (last - first) if last > first and done > before else None


class BatchProgress:
    """The progress of a batch on a terminal."""

    def __init__(self, progress: Progress, description: str) -> None:
        """Adds a bar."""
        self._progress = progress
        self._rate = Rate()
        self._task = progress.add_task(description.replace("[", r"\["), total=None, state="")

    def show(self, description: str, done: int | None = None, total: int | None = None) -> None:
        """Shows what is being done, without a rate."""
        self._progress.update(self._task, description=description, completed=done, total=total, state="")

    def update(
        self,
        done: float,
        total: int | None,
        *,
        per_second: float | None = None,
        left: float | None = None,
        state: str = "",
    ) -> None:
        """Shows how many prompts are done.

        Args:
            done: prompts that are done.
            total: prompts of the batch; None if not known.
            per_second: how many are done a second; None for the rate that is seen here.
            left: the time left in seconds; None for that which follows from the rate.
            state: what else there is to say.
        """
        self._rate.add(done)
        per_second = per_second or self._rate.per_second()
        if left is None and per_second and total is not None:
            left = (total - done) / per_second
        said = [state] if state else []
        if per_second:
            said.append(f"{per_second:.1f}/s" if per_second >= 1 else f"{60 * per_second:.1f}/min")
        if left is not None:
            said.append(f"{time_in_words(left)} left")
        self._progress.update(
            self._task, description="Drawing", completed=int(done), total=total, state=", ".join(said)
        )


@contextmanager
def batch_progress(description: str) -> Iterator[BatchProgress]:
    """Shows the progress of a batch on a terminal, and nothing elsewhere."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield BatchProgress(progress, description)


def time_in_words(seconds: float) -> str:
    """Returns a time as people say it, in two units at most."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours = round(minutes / 60)
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


def size_in_words(size: float) -> str:
    """Returns a size as people say it."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
