"""What `smalti generate` shows while pictures are drawn, and writes of them, wherever that is done."""

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from smalti.cli import interrupts
from smalti.cli.preview import preview
from smalti.errors import InvalidInputError, SmaltiWarning
from smalti.pictures import Drawing, grid, png_bytes, save_png, slug


@dataclass(frozen=True)
class Options:
    """What the command was given; None where it was not."""

    n: int | None
    candidates: int | None
    seed: int | None
    sampling: dict[str, float | None]
    model: str | None
    out: Path
    with_grid: bool
    as_json: bool


class Drawn(Protocol):
    """A picture that is drawn; `smalti.pipeline.Picture` is one."""

    @property
    def image(self) -> Image.Image:
        """The picture."""

    @property
    def candidate(self) -> int:
        """Its index among the candidates."""

    @property
    def score(self) -> float:
        """The ranker's."""

    @property
    def drawing(self) -> Drawing:
        """How it was drawn."""


class Bar:
    """A bar that moves with each row of tiles."""

    def __init__(self, progress: Progress, prompt: str) -> None:
        """Shows the prompt, and that it is being worked on."""
        shown = prompt if len(prompt) <= 48 else f"{prompt[:47]}…"
        self._progress = progress
        self._task = progress.add_task(shown.replace("[", r"\["), total=None, state="")

    def show(self, done: int, of: int | None, state: str = "") -> None:
        """Shows how many rows are drawn, and in a word what is done; raises KeyboardInterrupt after Ctrl-C."""
        interrupts.check()
        self._progress.update(self._task, completed=done, total=of, state=state)


@contextmanager
def progress_bar(console: Console, prompt: str) -> Iterator[Bar]:
    """Shows a bar on a terminal, and nothing elsewhere."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress, prompt)


@contextmanager
def heard() -> Iterator[list[str]]:
    """Gives a list that gets the text of every warning to the user; it is shown as well."""
    shown, texts = warnings.showwarning, list[str]()

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, SmaltiWarning):
            texts.append(str(message))
        shown(message, category, *rest, **more)

    warnings.showwarning = show
    try:
        yield texts
    finally:
        warnings.showwarning = shown


def check_folder(out: Path) -> None:
    """Finds out before the work whether the pictures can be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError("out", f"{out}: the folder cannot be made ({error.strerror})") from None
    if not os.access(out, os.W_OK):
        raise InvalidInputError("out", f"{out}: the folder cannot be written to")


def check_revision(original: Drawing, revision: str) -> None:
    """Refuses to draw again with other weights, where the user has not named the model herself."""
    if revision != original.revision:
        raise InvalidInputError(
            "like",
            f"it was drawn by {original.model} at revision {original.revision[:19]}, and here {original.model} is "
            f"{revision[:19]}: the picture would differ; name a model with --model to draw it all the same",
        )


def write(pictures: Sequence[Drawn], candidates: int, options: Options, warned: Sequence[str]) -> None:
    """Writes the pictures and their grid, and tells the user.

    Args:
        pictures: the best first.
        candidates: how many were drawn.
        options: where, and in which form.
        warned: what the user was warned of.

    Raises:
        InvalidInputError: a picture cannot be written.
    """
    out = options.out
    first = pictures[0].drawing
    stem = f"{slug(first.prompt)}-{first.seed}"
    written: list[dict[str, Any]] = []
    try:
        for picture in pictures:
            path = save_png(out, f"{stem}-{picture.candidate}", png_bytes(picture.image, picture.drawing))
            written.append(
                {"file": str(path), "candidate": picture.candidate, "score": round(picture.score, 4)}
            )
        sheet = grid([picture.image for picture in pictures])
        grid_path = None
        if options.with_grid and len(pictures) > 1:
            whole = first.model_copy(
                update={"candidate": None, "score": None, "n": len(pictures), "candidates": candidates}
            )
            grid_path = save_png(out, f"{stem}-grid", png_bytes(sheet, whole))
    except OSError as error:
        raise InvalidInputError("out", f"{out}: a picture cannot be written ({error.strerror})") from None
    if options.as_json:
        shared = first.model_dump(exclude={"candidate", "score", "n"})
        results = {
            "pictures": written,
            "grid": str(grid_path) if grid_path else None,
            "warnings": list(warned),
        }
        print(json.dumps({**shared, **results}), flush=True)
        return
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(preview(sheet, console))
    shown = grid_path or Path(written[0]["file"])
    console.print(
        f"{len(written)} of {candidates} drawn, seed {first.seed}: {shown}", markup=False, soft_wrap=True
    )
