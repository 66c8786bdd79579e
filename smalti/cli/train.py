"""`smalti train` and `smalti export`: from settings and data to checkpoints, and from those to a model folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from smalti.cli.extras import require_training
from smalti.devices import check_flags, find_device
from smalti.entrance import signals
from smalti.errors import InvalidInputError
from smalti.outputs import Inputs as Files
from smalti.parameters import Defaults, check_counts, check_diversity
from smalti.registry import library

if TYPE_CHECKING:
    from smalti.training.loop.settings import Network
    from smalti.training.trainers.inputs import Advance

Config = Annotated[Path, typer.Option(help="Settings of the run, a TOML file.", dir_okay=False)]
Data = Annotated[Path, typer.Option(help="Folder of the data set.")]
Vqgan = Annotated[Path, typer.Option(help="Run of the tokenizer, or a folder with a VQGAN.")]
Out = Annotated[Path, typer.Option(help="Folder of the run.")]
Minutes = Annotated[
    float | None,
    typer.Option(min=0, help="Save and stop after this many minutes. [default: at the schedule's end]"),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in OUT.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    train = typer.Typer(help="Train the networks.", no_args_is_help=True)
    train.command("tokenizer")(tokenizer)
    train.command("generator")(generator)
    train.command("ranker")(ranker)
    train.command("judge")(judge)
    train.command("refiner")(refiner)
    app.add_typer(train, name="train")
    app.command("export")(export)


def tokenizer(
    config: Config,
    data: Data,
    out: Out,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Run of a tokenizer, a model, or a folder with a VQGAN, to start from its weights. [default: none]",
        ),
    ] = None,
    minutes: Minutes = None,
    resume: Resume = False,
) -> None:
    """Train the image tokenizer, a VQGAN, on pictures."""
    _train("tokenizer", config, data, start, out, minutes, resume)


def generator(
    config: Config, data: Data, tokenizer: Vqgan, out: Out, minutes: Minutes = None, resume: Resume = False
) -> None:
    """Train the image-token generator, a transformer, on captions and encoded pictures."""
    _train("generator", config, data, tokenizer, out, minutes, resume)


def ranker(
    config: Config,
    data: Data,
    out: Out,
    vqgan: Annotated[
        Path | None,
        typer.Option(
            help="Run of the tokenizer, or a folder with a VQGAN, to reconstruct a share of the pictures with. "
            "[default: none]"
        ),
    ] = None,
    minutes: Minutes = None,
    resume: Resume = False,
) -> None:
    """Train the ranker, open_clip's CLIP, on pictures and captions."""
    _train("ranker", config, data, vqgan, out, minutes, resume)


def judge(
    config: Config, data: Data, vqgan: Vqgan, out: Out, minutes: Minutes = None, resume: Resume = False
) -> None:
    """Train the judge that `smalti evaluate` measures with, on a world's pictures, intact and damaged."""
    _train("judge", config, data, vqgan, out, minutes, resume)


def refiner(
    config: Config,
    data: Data,
    out: Out,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model to refine for: a name that `smalti models` lists, or a folder. [default: the shipped model]"
        ),
    ] = None,
    minutes: Minutes = None,
    resume: Resume = False,
) -> None:
    """Train the refiner of a model, a U-Net, on pictures and captions; `smalti export` adds it to a model."""
    _train("refiner", config, data, None, out, minutes, resume, model=model)


def export(
    out: Annotated[Path, typer.Option(help="Model folder to make.")],
    generator: Annotated[
        Path | None, typer.Option(help="Run of the generator. [default: none; give --model instead]")
    ] = None,
    ranker: Annotated[
        str | None,
        typer.Option(
            help="Run of the ranker, a folder in open_clip's format, or a name with a tag: ViT-B-32:openai. Needed "
            "with --generator. [default: none]"
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the model. Needed with --generator. [default: that of --model]"),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(
            help="Licence of the model, an SPDX identifier. Needed with --generator. [default: that of --model]"
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model to add the refiner to, instead of a new generator: a name that `smalti models` lists, or a "
            "folder. [default: none]"
        ),
    ] = None,
    refiner: Annotated[
        Path | None, typer.Option(help="Run of the refiner. [default: a model without a refiner]")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="Run of the tokenizer, to export its decoder; its tokens must be those of the generator. "
            "[default: the generator's own]"
        ),
    ] = None,
    description: Annotated[str, typer.Option(help="One sentence about the model.")] = "",
    source: Annotated[str, typer.Option(help="Where the model comes from.")] = "",
    n: Annotated[
        int, typer.Option("--n", help="Number of pictures that the model returns by default.")
    ] = Defaults().n,
    candidates: Annotated[
        int, typer.Option(help="Number of candidates that the model generates by default.")
    ] = Defaults().candidates,
    vary: Annotated[
        bool,
        typer.Option(
            "--vary/--no-vary", help="By default, candidates differ in what the prompt leaves open."
        ),
    ] = Defaults().vary,
    diversity: Annotated[
        float, typer.Option(help="Default weight of difference when pictures are chosen, from 0 to 1.")
    ] = Defaults().diversity,
    half: Annotated[
        bool, typer.Option("--half", help="Store weights as float16, which halves the files.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the content of OUT.")] = False,
) -> None:
    """Export runs as a model folder, which `smalti generate` and the services load.

    The model is made of runs of a generator and a ranker, or it is --model with a refiner added.
    """
    _require_training()
    if model is not None:
        unused = {"generator": generator, "ranker": ranker, "name": name, "licence": licence}
        for option, value in unused.items():
            if value is not None:
                raise InvalidInputError(option, "has no effect with --model; leave one of them out")
        if refiner is None:
            raise InvalidInputError("refiner", "must be given with --model")
        from smalti.training.refiner_export import add_refiner

        folder = add_refiner(
            library.find(model), refiner, out, stored="float16" if half else "float32", overwrite=overwrite
        )
        print(f"{folder.name}, {folder.size / 1e6:.1f} MB, refiner {folder.refiner_revision}: {out}")
        return
    if generator is None or ranker is None or name is None or licence is None:
        raise InvalidInputError("generator", "must be given with ranker, name and licence; or give --model")
    from smalti.training.export import export as export_model

    folder = export_model(
        generator,
        ranker,
        out,
        name=name,
        licence=licence,
        tokenizer=tokenizer,
        refiner=refiner,
        description=description,
        source=source,
        defaults=Defaults.check(
            **check_counts(n, candidates).model_dump(), vary=vary, diversity=check_diversity(diversity)
        ),
        stored="float16" if half else "float32",
        overwrite=overwrite,
    )
    print(f"{folder.name}, {folder.size / 1e6:.1f} MB, {folder.revision}: {out}")


def _train(
    network: "Network",
    config: Path,
    data: Path,
    vqgan: Path | None,
    out: Path,
    minutes: float | None,
    resume: bool,
    model: str | None = None,
) -> None:
    """Trains a network in a new run or a resumed one, and prints how the training ended."""
    _require_training()
    check_flags()
    find_device()
    from smalti.training.loop.monitor import Monitor
    from smalti.training.loop.run_folder import RunFolder
    from smalti.training.loop.settings import load_settings
    from smalti.training.loop.train import train
    from smalti.training.trainers.entrance import find_trainer
    from smalti.training.trainers.inputs import Inputs

    trainer = find_trainer(network)
    settings = load_settings(config, trainer.settings)
    inputs = Inputs(data=data, vqgan=vqgan, model=model)
    console = Console(stderr=True)
    read: Files = {"data": data, "vqgan": vqgan, "model": model}
    with (
        signals.deferred() as stopping,
        RunFolder.resume(out, settings) if resume else RunFolder.create(out, config, read) as run,
    ):
        if run.newest_step == settings.steps:
            # What the trainee would prepare, such as reconstructed pictures, takes minutes.
            print(f"finished after {settings.steps:,} steps: {out}")
            return
        run.remember_data(data)
        with _encoding(console) as advance:
            trainee = trainer.prepare(settings, inputs, out, advance)
        run.keep()
        monitor = Monitor(run, settings, tokens_per_step=trainee.tokens_per_step, console=console)
        end = train(trainee, settings, run, monitor, minutes)
    if end.reason == "finished":
        print(f"finished after {end.step:,} steps: {out}")
        return
    reason = "interrupted" if end.reason == "interrupted" else "the time is over"
    print(f"{reason}; saved at step {end.step:,} of {settings.steps:,}, continue with --resume")
    if end.reason == "interrupted":
        raise typer.Exit(stopping.exit_status)


@contextmanager
def _encoding(console: Console) -> "Iterator[Advance]":
    """Shows a bar while pictures are encoded, from the first call of the function on."""
    # Without a terminal it would still print an empty line.
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:

        def advance(done: int, total: int) -> None:
            signals.check()
            task = progress.task_ids[0] if progress.task_ids else progress.add_task("encoding pictures")
            progress.update(task, completed=done, total=total)

        yield advance


def _require_training() -> None:
    require_training("training", "optax", "orbax", "pyarrow", "tensorboardX")
