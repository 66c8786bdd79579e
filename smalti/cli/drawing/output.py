"""The output of `smalti generate`, for pictures of this process and of a gateway."""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypedDict

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from smalti.cli.drawing.options import DrawingOptions
from smalti.cli.drawing.preview import preview, shows_pictures
from smalti.errors import InvalidInputError, SmaltiWarning
from smalti.parameters import Refinement, SecondPass
from smalti.pictures import Drawing, Picture, grid, png_bytes, save_png, slug

MAX_SHOWN_PROMPT: Final = 48
"""Number of characters of a prompt that the progress bar shows."""


class InitialImageOptions(TypedDict, total=False):
    """A picture of which a part is kept, as arguments of `Pipeline.generate` and of `Client.generate`."""

    initial_image: bytes
    keep_rows: int | None
    mask: bytes
    strength: float | None


@dataclass(frozen=True, kw_only=True)
class Options(DrawingOptions):
    """The options of the command; None for an option that was not given."""

    initial: InitialImageOptions
    """A picture of which a part is kept; empty without one."""
    out: Path
    """The folder for the pictures."""
    with_grid: bool
    """Whether to write a grid of all pictures."""
    as_json: bool
    """Whether to print JSON instead of text."""


class ProgressBar:
    """A progress bar for the rows of tiles of one prompt."""

    def __init__(self, progress: Progress, prompt: str) -> None:
        """Adds the bar to a progress display."""
        shown = prompt if len(prompt) <= MAX_SHOWN_PROMPT else f"{prompt[: MAX_SHOWN_PROMPT - 1]}…"
        self._progress = progress
        self._task = progress.add_task(shown.replace("[", r"\["), total=None, state="")

    def update(self, done: int, total: int | None, state: str = "") -> None:
        """Shows how much is done, and the state in a few words."""
        self._progress.update(self._task, completed=done, total=total, state=state)


@contextmanager
def progress_bar(console: Console, prompt: str) -> Iterator[ProgressBar]:
    """Shows a progress bar on a terminal, and nothing elsewhere."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield ProgressBar(progress, prompt)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collects the text of every `SmaltiWarning` in a list; the warnings are shown as well."""
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


def second_pass_of(original: Drawing | None, options: Options) -> tuple[Refinement | bool | None, int | None]:
    """Returns how to refine and by how much to enlarge: the user's own options in place of an original's."""
    before = (original.second_pass if original else None) or SecondPass()
    refine = before.refine if options.refine is None else options.refine
    upscale = before.upscale if options.upscale is None and original else options.upscale
    return refine, upscale


def check_revision(
    original: Drawing, revision: str, *, refine: Refinement | bool | None, refiner: str | None
) -> None:
    """Checks that the weights are those of the original; skipped if the user names a model with --model.

    Args:
        original: the picture to draw again.
        revision: the revision of the model.
        refine: how to refine the pictures.
        refiner: the revision of the model's refiner.

    Raises:
        InvalidInputError: the model, or its refiner, has another revision.
    """
    if refine and original.refiner is not None and refiner != original.refiner:
        raise InvalidInputError(
            "like",
            f"the picture was refined by a refiner of revision {original.refiner[:19]}, but that of {original.model} "
            f"is now {(refiner or 'none')[:19]}; name a model with --model to draw it anyway, or leave the refiner out "
            "with --no-refine",
        )
    if revision != original.revision:
        raise InvalidInputError(
            "like",
            f"the picture was made by {original.model} at revision {original.revision[:19]}, but {original.model} is "
            f"now at {revision[:19]} and would draw another one; name a model with --model to draw it anyway",
        )


def write(
    pictures: Sequence[Picture],
    *,
    candidates: int,
    diversity: float,
    options: Options,
    warned: Sequence[str],
) -> None:
    """Writes the pictures and their grid, and prints where they are.

    Args:
        pictures: the pictures, best first.
        candidates: number of candidates that were generated.
        diversity: weight of difference in the choice of the pictures.
        options: where to write, and what to print.
        warned: the warnings that the user has seen, for JSON.

    Raises:
        InvalidInputError: a picture cannot be written.
    """
    out = options.out
    first = pictures[0].drawing
    stem = f"{slug(first.prompt)}-{first.seed}"
    whole = first.model_copy(
        update={
            "candidate": None,
            "score": None,
            "wording": None,
            "n": len(pictures),
            "candidates": candidates,
            "diversity": diversity,
        }
    )
    written: list[dict[str, Any]] = []
    try:
        for picture in pictures:
            path = save_png(out, f"{stem}-{picture.candidate}", picture.to_png())
            entry = {"file": str(path), "candidate": picture.candidate, "score": round(picture.score, 4)}
            wording = picture.drawing.wording
            written.append({**entry, "wording": wording} if wording is not None else entry)
        sheet = grid([picture.image for picture in pictures])
        grid_path = None
        if options.with_grid and len(pictures) > 1:
            grid_path = save_png(out, f"{stem}-grid", png_bytes(sheet, whole))
    except OSError as error:
        raise InvalidInputError("out", f"{out}: a picture cannot be written ({error.strerror})") from None
    if options.as_json:
        shared = whole.model_dump(exclude={"candidate", "score", "n", "wording"})
        results = {
            "pictures": written,
            "grid": str(grid_path) if grid_path else None,
            "warnings": list(warned),
        }
        print(json.dumps({**shared, **results}), flush=True)
        return
    console = Console(highlight=False)
    if shows_pictures(console):
        console.print(preview(sheet, console))
    shown = grid_path or Path(written[0]["file"])
    console.print(
        f"{len(written)} of {candidates} drawn, seed {first.seed}: {shown}", markup=False, soft_wrap=True
    )
