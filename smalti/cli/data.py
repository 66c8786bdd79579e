"""`smalti data`: data sets to train on, from pinned packages or from your own pictures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from smalti.cli.extras import require_training
from smalti.entrance import signals
from smalti.errors import InvalidInputError
from smalti.files import atomic_path
from smalti.foreign_text import printable
from smalti.outputs import check_file, check_folder

if TYPE_CHECKING:
    from smalti.training.data.report import Report

_PACKAGES = Path("build/packages")
_WORLD = Path("data/shipped/world")

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the content of OUT.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    data = typer.Typer(help="Make data sets to train on.", no_args_is_help=True)
    data.command("build")(build)
    data.command("compose")(compose)
    data.command("import")(import_)
    data.command("encode")(encode)
    app.add_typer(data, name="data")


def build(
    out: Annotated[Path, typer.Argument(help="Folder of the data set.")] = _WORLD.parent,
    resolution: Annotated[
        int,
        typer.Option(help="Largest side of the pictures to compose, in pixels: 64, 80, 96, 128, 160 or 192."),
    ] = 192,
    world: Annotated[Path | None, typer.Option(help="A world.json. [default: the shipped one]")] = None,
    pictograms: Annotated[bool, typer.Option(help="Also make the set of all named pictograms.")] = True,
    packages: Annotated[
        Path, typer.Option(help="Folder in which npm installs the pinned packages.")
    ] = _PACKAGES,
    overwrite: Overwrite = False,
) -> None:
    """Build the shipped data set from pinned packages: the same packages give the same bytes."""
    _require_training()
    check_folder(out, inputs={"packages": packages, "world": world}, overwrite=overwrite)
    from smalti.training.data.world.building import build as build_data
    from smalti.training.data.world.description import SHIPPED, load_description
    from smalti.training.data.world.packages.pictograms import install_packages

    description = load_description(world or SHIPPED)
    with Console(stderr=True).status("Fetching the packages ..."):
        installed = install_packages(packages)
    with _progress("Drawing pictograms") as advance:
        report = build_data(out, installed, description, resolution, pictograms, overwrite, advance)
    _show(report, out)


def compose(
    world: Annotated[Path, typer.Argument(help="Folder `world` of a built data set.")] = _WORLD,
    split: Annotated[str, typer.Option(help="Split: train, validation or held_out.")] = "train",
    count: Annotated[int, typer.Option(min=1, max=1024, help="Number of pictures.")] = 64,
    start: Annotated[int, typer.Option(min=0, help="Index of the first picture.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the pictures.")] = 0,
    resolution: Annotated[
        int, typer.Option(help="Side of the pictures in pixels: 64, 80, 96, 128, 160 or 192.")
    ] = 96,
    containing: Annotated[
        str, typer.Option(help="Show only pictures whose caption contains this text.")
    ] = "",
    out: Annotated[Path, typer.Option(help="Contact sheet to write.")] = Path("composed.png"),
) -> None:
    """Show pictures that training composes: a contact sheet with their captions, which are also printed."""
    _require_training()
    from smalti.training.data.report import contact_sheet
    from smalti.training.data.world.composition import CompositionDataset, World

    check_file(out, inputs={"world": world})
    dataset = CompositionDataset(World.load(world, resolution), seed, split)
    pictures, captions = dataset.find(containing, start, count)
    try:
        with atomic_path(out) as partial:
            contact_sheet(pictures, captions=captions).save(partial, "PNG")
    except OSError as error:
        raise InvalidInputError("out", f"{out}: the sheet cannot be written ({error.strerror})") from None
    for caption in captions:
        print(caption)


def import_(
    source: Annotated[
        Path, typer.Argument(help="A folder, a .csv, .tsv or .jsonl file, or webdataset .tar files.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the data set.")],
    config: Annotated[
        Path | None,
        typer.Option(help="Settings of the import, a TOML file; docs/data.md lists them. [default: none]"),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a data set of your own pictures: cleaned, compared and split."""
    _require_training()
    from smalti.training.data.configuration import ImportSettings, load_import_settings
    from smalti.training.data.importing import import_pictures

    check_folder(out, inputs={"source": source, "config": config}, overwrite=overwrite)
    settings = load_import_settings(config) if config else ImportSettings()
    with _progress("Reading pictures") as advance:
        report = import_pictures(source, out, settings, overwrite, lambda count: advance(count, None))
    _show(report, out)


def encode(
    data: Annotated[Path, typer.Argument(help="Folder of Parquet shards with pictures and captions.")],
    vqgan: Annotated[Path, typer.Argument(help="Folder of the VQGAN that makes the tokens.")],
    out: Annotated[Path, typer.Argument(help="Folder of the encoded data set.")],
    overwrite: Overwrite = False,
) -> None:
    """Encode pictures as image tokens, once: Parquet shards with the columns caption and encoding."""
    _require_training()
    from smalti.models.vqgan import VQGAN
    from smalti.training.data.encoding import encode_pictures

    check_folder(out, inputs={"data": data, "vqgan": vqgan}, overwrite=overwrite)
    model = VQGAN.load(vqgan)
    with _progress("Encoding") as advance:
        counts = encode_pictures(
            data, model, out, model.config.resolution, overwrite, lambda count: advance(count, None)
        )
    for split, count in counts.items():
        print(f"{split}: {count:,} rows")


def _require_training() -> None:
    require_training("a data set", "imagehash", "pyarrow", "resvg_py")


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int | None], Any]]:
    """Shows a progress bar on standard error."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)

        def advance(done: int, total: int | None) -> None:
            signals.check()
            progress.update(task, completed=done, total=total)

        yield advance


def _show(report: "Report", out: Path) -> None:
    """Prints a summary of the report."""
    for split, count in report.counts.get("split", {}).items():
        print(f"{split}: {count:,}")
    if report.problems:
        print(f"not used: {len(report.problems):,}, all listed in {printable(str(out / 'report.json'))}")
    for kind, (count, example) in sorted(report.left_out.items()):
        print(f"taken out of captions: {kind}, {count:,} times, such as {printable(example)}")
    print(f"report: {printable(str(out / 'report.md'))}")


__all__ = ["register"]
