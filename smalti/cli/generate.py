"""`smalti generate`: prompts in, pictures out, in this process."""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from smalti.cli import interrupts
from smalti.cli.preview import preview
from smalti.errors import InvalidInputError, SmaltiWarning
from smalti.models import library
from smalti.parameters import check_counts, check_prompt, check_seed
from smalti.pictures import Drawing, grid, png_bytes, read_drawing, save_png, slug

if TYPE_CHECKING:
    from smalti.engines.generator import RowsDrawn
    from smalti.pipeline import Picture


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("generate")(generate)


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="What to draw.")] = None,
    n: Annotated[
        int | None, typer.Option("--n", help="Pictures to keep, the best ones. [default: 9]")
    ] = None,
    candidates: Annotated[
        int | None, typer.Option(help="Pictures to draw, for the ranker to choose from. [default: 16]")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed draws the same pictures. [default: random]")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(help="How strongly the prompt leads; 1 is no guidance. [default: the model's]"),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Variety; 0 takes the most probable tile. [default: the model's]")
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="Choose among the k most probable tiles; 0: no limit. [default: the model's]"),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Choose among tiles that together have this probability. [default: the model's]"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A name that `smalti models` lists, or a folder. [default: the shipped one]"),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for the pictures.")] = Path("pictures"),
    with_grid: Annotated[
        bool, typer.Option("--grid/--no-grid", help="Also write all pictures as one.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON for each prompt.")] = False,
    like: Annotated[
        Path | None, typer.Option(help="Draw again what this PNG shows: a picture, or a whole grid.")
    ] = None,
) -> None:
    """Draw pictures of each PROMPT: sixteen candidates, of which CLIP keeps the best nine."""
    console = Console(stderr=True)
    original = _original(prompts, like)
    drawings = [check_prompt(prompt) for prompt in prompts or []]
    folder = library.find(model if model is not None or original is None else original.model)
    if original is not None:
        _check_revision(original, folder.revision, model)
        drawings = [original.prompt]
        seed = original.seed if seed is None else seed
        n = (original.n or 1) if n is None else n
        candidates = original.candidates if candidates is None else candidates
    sampling = (original or folder).sampling.but(
        guidance_scale=guidance_scale, temperature=temperature, top_k=top_k, top_p=top_p
    )
    counts = check_counts(
        folder.defaults.n if n is None else n,
        folder.defaults.candidates if candidates is None else candidates,
    )
    seed = check_seed(seed)
    _check_folder(out)

    # Only now: importing JAX and torch takes seconds, and bad input should be told at once.
    with console.status(f"Loading {folder.name} ..."):
        from smalti.engines.compilation import use_compilation_cache
        from smalti.pipeline import Pipeline

        use_compilation_cache()
        pipeline = Pipeline.load(folder.path)
    for prompt in drawings:
        with _heard() as warned, _progress(console, prompt) as rows_drawn:
            if original is not None and original.candidate is not None:
                pictures = pipeline.draw(
                    prompt, seed, [original.candidate], sampling, counts.candidates, rows_drawn=rows_drawn
                )
            else:
                pictures = pipeline.generate(
                    prompt, counts.n, counts.candidates, seed, **sampling.model_dump(), rows_drawn=rows_drawn
                )
        interrupts.check()
        _write(pictures, counts.candidates, out, warned, with_grid=with_grid, as_json=as_json)


def _original(prompts: list[str] | None, like: Path | None) -> Drawing | None:
    """Returns the drawing to repeat, if one is asked for; refuses prompts beside it, and neither of the two."""
    if like is None:
        if not prompts:
            raise InvalidInputError(
                "prompt", 'it is missing; say what to draw, as in smalti generate "a red balloon"'
            )
        return None
    if prompts:
        raise InvalidInputError(
            "like", "the picture brings its own prompt; give a prompt or --like, not both"
        )
    return read_drawing(like)


def _check_revision(original: Drawing, revision: str, model: str | None) -> None:
    """Refuses to draw again with other weights, unless the user named the model herself."""
    if model is None and revision != original.revision:
        raise InvalidInputError(
            "like",
            f"it was drawn by {original.model} at revision {original.revision[:19]}, and here {original.model} is "
            f"{revision[:19]}: the picture would differ; name a model with --model to draw it all the same",
        )


def _check_folder(out: Path) -> None:
    """Finds out before the work whether the pictures can be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError("out", f"{out}: the folder cannot be made ({error.strerror})") from None
    if not os.access(out, os.W_OK):
        raise InvalidInputError("out", f"{out}: the folder cannot be written to")


@contextmanager
def _progress(console: Console, prompt: str) -> "Iterator[RowsDrawn]":
    """Shows a bar that moves with each row of tiles, on standard error."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        shown = prompt if len(prompt) <= 48 else f"{prompt[:47]}…"
        task = progress.add_task(shown.replace("[", r"\["), total=None)

        def rows_drawn(done: int, of: int) -> None:
            interrupts.check()
            progress.update(task, completed=done, total=of)

        yield rows_drawn


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Gives a list that gets the text of every warning to the user; it is shown as well."""
    shown, heard = warnings.showwarning, list[str]()

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, SmaltiWarning):
            heard.append(str(message))
        shown(message, category, *rest, **more)

    warnings.showwarning = show
    try:
        yield heard
    finally:
        warnings.showwarning = shown


def _write(
    pictures: "list[Picture]",
    candidates: int,
    out: Path,
    warned: list[str],
    *,
    with_grid: bool,
    as_json: bool,
) -> None:
    """Writes the pictures and their grid, and tells the user."""
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
        if with_grid and len(pictures) > 1:
            whole = first.model_copy(
                update={"candidate": None, "score": None, "n": len(pictures), "candidates": candidates}
            )
            grid_path = save_png(out, f"{stem}-grid", png_bytes(sheet, whole))
    except OSError as error:
        raise InvalidInputError("out", f"{out}: a picture cannot be written ({error.strerror})") from None
    if as_json:
        shared = first.model_dump(exclude={"candidate", "score", "n"})
        results = {"pictures": written, "grid": str(grid_path) if grid_path else None, "warnings": warned}
        print(json.dumps({**shared, **results}), flush=True)
        return
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(preview(sheet, console))
    shown = grid_path or Path(written[0]["file"])
    console.print(
        f"{len(written)} of {candidates} drawn, seed {first.seed}: {shown}", markup=False, soft_wrap=True
    )


__all__ = ["register"]
