"""`smalti evaluate`, `smalti sweep` and `smalti card`: measure a model, and write the pages about it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from smalti.cli.extras import require_training
from smalti.devices import check_flags
from smalti.entrance import signals
from smalti.errors import SmaltiError
from smalti.files import write_atomically
from smalti.outputs import Inputs, check_file, open_folder
from smalti.parameters import check_diversity
from smalti.registry import library

if TYPE_CHECKING:
    from smalti.pipeline import Pipeline
    from smalti.training.data.world.composition import World
    from smalti.training.judge.network import Judge

Model = Annotated[
    str | None,
    typer.Option(help="Name from `smalti models`, or a folder. [default: the shipped one]"),
]
JudgeRun = Annotated[Path, typer.Option("--judge", help="Run of the judge.")]
Data = Annotated[
    Path, typer.Option(help="Folder of the data set, with the world that the model was trained on.")
]
PromptsPerKind = Annotated[int, typer.Option(min=1, help="Number of prompts of each kind.")]
Values = Annotated[
    list[float] | None, typer.Option(help="Value to try; repeat for several. [default: the model's]")
]
Slots = Annotated[int, typer.Option(min=1, help="Number of candidates generated at the same time.")]

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
    out: Annotated[Path, typer.Option(help="Folder for quality.md and its pictures.")] = Path("docs"),
    prompts_per_kind: PromptsPerKind = 50,
    sheet_prompts: Annotated[
        Path | None,
        typer.Option(help="Prompts to show, a TOML file. [default: 24 prompts of the shipped world]"),
    ] = None,
    before: Annotated[
        Path | None,
        typer.Option(help="quality.json of an earlier evaluation, to compare with. [default: none]"),
    ] = None,
    slots: Slots = _SLOTS,
) -> None:
    """Measure a model with fixed prompts and an independent judge, and write a page with the results."""
    _require_training()
    from smalti.training.evaluation.features import FeatureNetwork
    from smalti.training.evaluation.goals import load_earlier
    from smalti.training.evaluation.measuring import count_prompts
    from smalti.training.evaluation.measuring import evaluate as measure
    from smalti.training.evaluation.page import PAGE, observations, write_page
    from smalti.training.evaluation.questions import SHEET_PROMPTS

    shown = sheet_prompts or SHEET_PROMPTS
    inputs: Inputs = {"judge": judge, "data": data, "model": library.find(model).path}
    with open_folder(out, inputs=inputs) as opened:
        observations(out / PAGE)  # Fails before the work if the existing page cannot be kept.
        earlier = load_earlier(before) if before is not None else None
        network = FeatureNetwork.load()
        with (
            _opened(model, judge, data, slots) as (pipeline, world, known),
            _progress("Drawing", count_prompts(world, shown, prompts_per_kind)) as advance,
        ):
            quality, sheets = measure(
                pipeline, known, network, world, prompts_per_kind, sheet_prompts=shown, advance=advance
            )
        page = write_page(opened.path, quality, sheets, earlier)
    for kind, result in quality.kinds.items():
        best = result.shares["best"].everything
        print(f"{kind.replace('_', ' ')}: {best.value:.1%} of the best {quality.counts.n} are right")
    print(f"page: {page}")


def sweep(
    judge: JudgeRun,
    data: Data,
    model: Model = None,
    guidance_scale: Values = None,
    temperature: Values = None,
    top_k: Annotated[
        list[int] | None, typer.Option(help="Value to try; repeat for several. [default: the model's]")
    ] = None,
    top_p: Values = None,
    layout_share: Values = None,
    layout_temperature: Values = None,
    layout_guidance_scale: Values = None,
    diversity: Values = None,
    vary: Annotated[
        bool | None,
        typer.Option(
            "--vary/--no-vary",
            help="Let candidates differ in what the prompt leaves open. [default: the model's]",
        ),
    ] = None,
    prompts_per_kind: PromptsPerKind = 10,
    out: Annotated[Path | None, typer.Option(help="Markdown file for the table. [default: none]")] = None,
    slots: Slots = _SLOTS,
) -> None:
    """Judge a model's pictures over a grid of sampling values, to choose the model's own."""
    _require_training()
    from smalti.training.evaluation.features import FeatureNetwork
    from smalti.training.evaluation.questions import kinds_of
    from smalti.training.evaluation.sweep import sampling_grid, sweep_table
    from smalti.training.evaluation.sweep import sweep as measure

    folder = library.find(model)
    if out is not None:
        check_file(out, inputs={"judge": judge, "data": data, "model": folder.path})
    tried = {
        "guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p,
        "layout_share": layout_share, "layout_temperature": layout_temperature,
        "layout_guidance_scale": layout_guidance_scale,
    }  # fmt: skip
    grid = sampling_grid(folder.sampling, {name: values or [] for name, values in tried.items()})
    diversities = [check_diversity(value) for value in diversity or [folder.defaults.diversity]]
    network = FeatureNetwork.load()
    with (
        _opened(model, judge, data, slots) as (pipeline, world, known),
        _progress("Drawing", len(grid) * len(kinds_of(world)) * prompts_per_kind) as advance,
    ):
        rows = list(
            measure(
                pipeline,
                known,
                network,
                world,
                grid,
                prompts_per_kind,
                vary=folder.defaults.vary if vary is None else vary,
                diversities=diversities,
                advance=advance,
            )
        )
    table = sweep_table(rows)
    print(table, end="")
    if out is not None:
        try:
            write_atomically(out, table)
        except OSError as error:
            raise SmaltiError(f"{out}: the table cannot be written ({error.strerror})") from None


def card(
    run: Annotated[
        list[Path], typer.Option(help="Run from which the model was exported; repeat for all runs.")
    ],
    data: Data,
    model: Model = None,
    evaluated: Annotated[Path, typer.Option(help="Folder that `smalti evaluate` wrote.")] = Path("docs"),
    docs: Annotated[
        str, typer.Option(help="Address of that folder, as the card links to it.")
    ] = "../../../docs",
) -> None:
    """Write a model's card to its folder, with samples and figures of its evaluation."""
    _require_training()
    from smalti.training.batches.sources import WORLD_FILE, require_world
    from smalti.training.data.world.description import load_description
    from smalti.training.evaluation.model_card import write_card

    world = require_world(data)
    folder = library.find(model)
    inputs: Inputs = {"evaluated": evaluated, "data": data, **{f"run {path.name}": path for path in run}}
    with open_folder(folder.path, inputs=inputs, field="model"):
        path = write_card(folder, load_description(world / WORLD_FILE), evaluated, run, docs)
    print(f"card: {path}")


@contextmanager
def _opened(
    model: str | None, judge: Path, data: Path, slots: int
) -> "Iterator[tuple[Pipeline, World, Judge]]":
    """Loads the model, its world and the judge; stops the generator at the end."""
    from smalti.training.batches.sources import require_world

    folder = library.find(model)
    world_folder = require_world(data)
    with Console(stderr=True).status(f"Loading {folder.name} ..."), signals.at_once():
        check_flags()
        from smalti.compilation import use_compilation_cache
        from smalti.models.vqgan import VQGANConfig
        from smalti.pipeline import Pipeline
        from smalti.training.data.world.composition import World
        from smalti.training.trainers.judge import load_judge

        use_compilation_cache()
        world = World.load(world_folder, VQGANConfig.load(folder.vqgan_folder).resolution)
        known = load_judge(judge, world.description)
        pipeline = Pipeline.load(folder.path, slots=slots)
    try:
        yield pipeline, world, known
    finally:
        pipeline.close()


def _require_training() -> None:
    require_training("an evaluation", "optax", "orbax", "pyarrow", "tensorboardX")


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)

        def advance(done: int) -> None:
            signals.check()
            progress.update(task, completed=done)

        yield advance
