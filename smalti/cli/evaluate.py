"""`smalti evaluate`, `smalti sweep` and `smalti card`: how good a model is, and a page that says so."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from smalti.cli import interrupts
from smalti.cli.train import require_training
from smalti.errors import InvalidInputError, SmaltiError
from smalti.files import write_atomically
from smalti.registry import library

if TYPE_CHECKING:
    from smalti.pipeline import Pipeline
    from smalti.training.data.world.composition import World
    from smalti.training.judge.network import Judge

Model = Annotated[
    str | None,
    typer.Option(help="A name that `smalti models` lists, or a folder. [default: the shipped one]"),
]
JudgeRun = Annotated[Path, typer.Option("--judge", help="The judge's run.")]
Data = Annotated[Path, typer.Option(help="The folder of the data set, with the world that the model draws.")]
PromptsPerKind = Annotated[
    int, typer.Option(min=1, help="Prompts of each kind that shares are counted over.")
]
Slots = Annotated[int, typer.Option(min=1, help="Candidates that are drawn at the same time.")]

_SLOTS = 64


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("evaluate")(evaluate)
    app.command("sweep")(sweep)
    app.command("card")(card)


def evaluate(
    judge: JudgeRun,
    data: Data,
    model: Model = None,
    out: Annotated[Path, typer.Option(help="The folder for quality.md and its pictures.")] = Path("docs"),
    prompts_per_kind: PromptsPerKind = 100,
    sheet_prompts: Annotated[
        Path | None, typer.Option(help="A TOML file of prompts to show. [default: 24 of the shipped world]")
    ] = None,
    slots: Slots = _SLOTS,
) -> None:
    """Measure a model with fixed prompts and an independent judge, and write the page that says how good it is."""
    require_training()
    from smalti.training.evaluation.measuring import evaluate as measure
    from smalti.training.evaluation.measuring import prompts_in_all
    from smalti.training.evaluation.page import PAGE, observations, write_page
    from smalti.training.evaluation.questions import SHEET_PROMPTS

    shown = sheet_prompts or SHEET_PROMPTS
    observations(out / PAGE)  # A page that cannot be kept is told before the work.
    with (
        _opened(model, judge, data, slots) as (pipeline, world, known),
        _progress("Drawing", prompts_in_all(world, shown, prompts_per_kind)) as advance,
    ):
        quality, sheets = measure(
            pipeline, known, world, prompts_per_kind, sheet_prompts=shown, advance=advance
        )
    page = write_page(out, quality, sheets)
    for kind, result in quality.kinds.items():
        best = result.shares["best"].everything
        print(f"{kind.replace('_', ' ')}: {best.value:.1%} of the best {quality.counts.n} are right")
    print(f"page: {page}")


def sweep(
    judge: JudgeRun,
    data: Data,
    model: Model = None,
    guidance_scale: Annotated[
        list[float] | None, typer.Option(help="Give it several times. [default: the model's]")
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(help="Give it several times. [default: the model's]")
    ] = None,
    top_k: Annotated[
        list[int] | None, typer.Option(help="Give it several times. [default: the model's]")
    ] = None,
    prompts_per_kind: PromptsPerKind = 10,
    out: Annotated[Path | None, typer.Option(help="A Markdown file for the table. [default: none]")] = None,
    slots: Slots = _SLOTS,
) -> None:
    """Judge a model's pictures over a grid of sampling values, to choose its own."""
    require_training()
    from smalti.training.evaluation.questions import KINDS
    from smalti.training.evaluation.sweep import sampling_grid, sweep_table
    from smalti.training.evaluation.sweep import sweep as measure

    sampling = library.find(model).sampling
    grid = sampling_grid(sampling, guidance_scale or [], temperature or [], top_k or [])
    with (
        _opened(model, judge, data, slots) as (pipeline, world, known),
        _progress("Drawing", len(grid) * len(KINDS) * prompts_per_kind) as advance,
    ):
        rows = list(measure(pipeline, known, world, grid, prompts_per_kind, advance=advance))
    table = sweep_table(rows)
    print(table, end="")
    if out is not None:
        try:
            write_atomically(out, table)
        except OSError as error:
            raise SmaltiError(f"{out}: the table cannot be written ({error.strerror})") from None


def card(
    run: Annotated[list[Path], typer.Option(help="A run that the model was exported from; give all.")],
    data: Data,
    model: Model = None,
    evaluated: Annotated[Path, typer.Option(help="The folder that `smalti evaluate` wrote.")] = Path("docs"),
    docs: Annotated[str, typer.Option(help="How the card links to that folder.")] = "../../../docs",
) -> None:
    """Write a model's card into its folder, with samples and the figures of its evaluation."""
    require_training()
    from smalti.training.batches.sources import WORLD_FILE
    from smalti.training.evaluation.model_card import write_card

    world = _world_folder(data)
    from smalti.training.data.world.description import read_description

    path = write_card(library.find(model), read_description(world / WORLD_FILE), evaluated, run, docs)
    print(f"card: {path}")


@contextmanager
def _opened(
    model: str | None, judge: Path, data: Path, slots: int
) -> "Iterator[tuple[Pipeline, World, Judge]]":
    """Loads the model, its world and the judge; stops the generator in the end."""
    folder = library.find(model)
    world_folder = _world_folder(data)
    with Console(stderr=True).status(f"Loading {folder.name} ..."):
        from smalti.engines.compilation import use_compilation_cache
        from smalti.models.vqgan import VQGANConfig
        from smalti.pipeline import Pipeline
        from smalti.training.data.world.composition import World
        from smalti.training.judge.trainer import load_judge

        use_compilation_cache()
        world = World.load(world_folder, VQGANConfig.load(folder.vqgan_folder).resolution)
        known = load_judge(judge, world.description)
        pipeline = Pipeline.load(folder.path, slots=slots)
    try:
        yield pipeline, world, known
    finally:
        pipeline.generator.close()


def _world_folder(data: Path) -> Path:
    from smalti.training.batches.sources import find_world

    folder = find_world(data)
    if folder is None:
        raise InvalidInputError("data", f"{data} has no world; make one with `smalti data build`")
    return folder


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how many prompts are drawn, on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)

        def advance(done: int) -> None:
            interrupts.check()
            progress.update(task, completed=done)

        yield advance
