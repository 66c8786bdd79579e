"""`smalti train` and `smalti export`: from a config file and data to checkpoints, and from those to a model folder."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from smalti.errors import SmaltiError
from smalti.parameters import Counts, check_counts

if TYPE_CHECKING:
    from smalti.training.loop.settings import RunSettings

INTERRUPTED = 130

Config = Annotated[Path, typer.Option(help="The TOML file of the run.", dir_okay=False)]
Data = Annotated[Path, typer.Option(help="The folder of the data set.")]
Out = Annotated[Path, typer.Option(help="The folder of the run.")]
Minutes = Annotated[
    float | None, typer.Option(min=0, help="Stop and save after so long. [default: at the schedule's end]")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    train = typer.Typer(help="Train the networks.", no_args_is_help=True)
    train.command("tokenizer")(tokenizer)
    train.command("generator")(generator)
    train.command("ranker")(ranker)
    train.command("judge")(judge)
    app.add_typer(train, name="train")
    app.command("export")(export)


def tokenizer(config: Config, data: Data, out: Out, minutes: Minutes = None, resume: Resume = False) -> None:
    """Train the image tokenizer: a VQGAN, on pictures."""
    require_training()
    from smalti.training.batches.sources import open_pictures
    from smalti.training.loop.settings import read_settings
    from smalti.training.trainers.tokenizer import TokenizerSettings, TokenizerTrainee

    settings = read_settings(config, TokenizerSettings)
    resolution = settings.config().resolution
    pictures = open_pictures(data, resolution, settings.seed)
    _run(settings, lambda: TokenizerTrainee(settings, pictures), config, out, minutes, resume)


def generator(
    config: Config,
    data: Data,
    tokenizer: Annotated[Path, typer.Option(help="The tokenizer's run, or a folder with a VQGAN.")],
    out: Out,
    minutes: Minutes = None,
    resume: Resume = False,
) -> None:
    """Train the image-token generator: a transformer, on captions and pictures' tokens."""
    require_training()
    from smalti.training.loop.settings import read_settings
    from smalti.training.trainers.generator import GeneratorSettings, GeneratorTrainee
    from smalti.training.trainers.generator_run import open_parts

    settings = read_settings(config, GeneratorSettings)

    def make() -> GeneratorTrainee:
        with _encoding(settings.pictures) as advance:
            parts = open_parts(settings, data, tokenizer, out, advance)
        return GeneratorTrainee(settings, parts.data, parts.tokenizer, parts.vqgan)

    _run(settings, make, config, out, minutes, resume)


def ranker(
    config: Config,
    data: Data,
    out: Out,
    vqgan: Annotated[
        Path | None,
        typer.Option(
            help="The tokenizer's run, or a folder with a VQGAN: draws the config's share of the pictures. "
            "[default: none]"
        ),
    ] = None,
    minutes: Minutes = None,
    resume: Resume = False,
) -> None:
    """Train the ranker: open_clip's CLIP, on pictures and captions."""
    require_training()
    from smalti.training.loop.settings import read_settings
    from smalti.training.trainers.ranker import RankerSettings
    from smalti.training.trainers.ranker_run import open_parts

    parts = open_parts(read_settings(config, RankerSettings), data, vqgan, out)
    _run(parts.settings, lambda: parts.trainee(out), config, out, minutes, resume)


def judge(
    config: Config,
    data: Data,
    vqgan: Annotated[Path, typer.Option(help="The tokenizer's run, or a folder with a VQGAN.")],
    out: Out,
    minutes: Minutes = None,
    resume: Resume = False,
) -> None:
    """Train the judge that `smalti evaluate` measures with, on a world's pictures, good and damaged."""
    require_training()
    from smalti.training.judge.trainer import JudgeSettings, open_trainee
    from smalti.training.loop.settings import read_settings
    from smalti.training.trainers.tokenizer import load_vqgan

    settings = read_settings(config, JudgeSettings)
    network = load_vqgan(vqgan)
    _run(settings, lambda: open_trainee(settings, data, network, out), config, out, minutes, resume)


def export(
    generator: Annotated[Path, typer.Option(help="The generator's run.")],
    ranker: Annotated[
        str,
        typer.Option(help="The ranker's run, a folder of open_clip, or a name with a tag: ViT-B-32:openai."),
    ],
    name: Annotated[str, typer.Option(help="The model's name.")],
    licence: Annotated[str, typer.Option(help="Its licence, an SPDX identifier.")],
    out: Annotated[Path, typer.Option(help="The model folder to make.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="The tokenizer's run, to check that it is the generator's. [default: none]"),
    ] = None,
    description: Annotated[str, typer.Option(help="A sentence on the model.")] = "",
    source: Annotated[str, typer.Option(help="Where it is from.")] = "",
    n: Annotated[int, typer.Option("--n", help="Pictures that the model keeps by default.")] = Counts().n,
    candidates: Annotated[
        int, typer.Option(help="Candidates that it draws by default.")
    ] = Counts().candidates,
    half: Annotated[
        bool, typer.Option("--half", help="Store weights as float16: files of half the size.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in OUT.")] = False,
) -> None:
    """Turn runs into a model folder, which `smalti generate` and the services load."""
    require_training()
    from smalti.training.export import export as export_model

    folder = export_model(
        generator,
        ranker,
        out,
        name=name,
        licence=licence,
        tokenizer=tokenizer,
        description=description,
        source=source,
        defaults=check_counts(n, candidates),
        stored="float16" if half else "float32",
        overwrite=overwrite,
    )
    print(f"{folder.name}, {folder.size / 1e6:.1f} MB, {folder.revision}: {out}")


def _run(
    settings: "RunSettings", make: Any, config: Path, out: Path, minutes: float | None, resume: bool
) -> None:
    """Trains what `make` makes, and says how it ended."""
    from smalti.training.loop.monitor import Monitor
    from smalti.training.loop.run_folder import RunFolder
    from smalti.training.loop.running import train

    console = Console(stderr=True)
    is_new = not out.exists()
    run = RunFolder.resume(out, settings) if resume else RunFolder.create(out, config)
    try:
        trainee = _made(make, out if is_new else None)
        outcome = train(
            trainee, settings, run, Monitor(run, settings, trainee.tokens_per_step, console), minutes
        )
    finally:
        run.close()
    if outcome.why == "finished":
        print(f"finished after {outcome.step:,} steps: {out}")
        return
    why = "interrupted" if outcome.why == "interrupted" else "the time is over"
    print(f"{why}; saved at step {outcome.step:,} of {settings.steps:,}, go on with --resume")
    if outcome.why == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _made(make: Any, new: Path | None) -> Any:
    """Returns what `make` makes; when it cannot be made, the folder that is new goes away again."""
    try:
        return make()
    except BaseException:
        if new is not None:
            shutil.rmtree(new, ignore_errors=True)
        raise


@contextmanager
def _encoding(pictures: int) -> "Iterator[Callable[[int], None]]":
    """Shows how many pictures are encoded."""
    console = Console(stderr=True)
    # Where there is no bar it would still print an empty line.
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("encoding pictures", total=pictures)
        yield lambda done: progress.update(task, completed=done)


def require_training() -> None:
    """Refuses before the work when the extra is missing."""
    for name in ("optax", "orbax.checkpoint", "pyarrow", "tensorboardX"):
        package = name.partition(".")[0]
        if find_spec(package) is None:
            raise SmaltiError(f"{package} is not installed; training needs: pip install 'smalti[training]'")
