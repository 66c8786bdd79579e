"""`smalti models`, `verify`, `import` and `pull`: which models there are, and how new ones come."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from smalti.models import library
from smalti.models.folder import ModelFolder
from smalti.models.importing import DEFAULT_CLIP, DEFAULT_VQGAN, import_model
from smalti.models.library import Listed

# The exit status of `verify` for a model that is not what it was; 2 is for wrong usage.
NOT_WELL = 1
SHORT_REVISION = len("sha256:") + 12

Clip = Annotated[
    str, typer.Option(help="A folder of open_clip's, or a name that open_clip knows, with its tag.")
]
Out = Annotated[
    Path | None, typer.Option(help="The folder to make. [default: of the model's name, among yours]")
]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("models")(models)
    app.command("verify")(verify)
    app.command("import")(import_)
    app.command("pull")(pull)


def models(as_json: Annotated[bool, typer.Option("--json", help="Print a list in JSON.")] = False) -> None:
    """List the models that have a name: those that come with Smalti, and yours."""
    listed = library.list_models()
    if as_json:
        print(json.dumps([_fields(entry) for entry in listed], indent=2))
        return
    if not listed:
        print("There are no models yet; `smalti import` and `smalti pull` make them.")
        return
    table = Table("name", "revision", "licence", "size", "where", box=None, header_style="bold")
    for entry in listed:
        table.add_row(*(Text(cell) for cell in _cells(entry)))
    Console().print(table)


def verify(model: Annotated[str, typer.Argument(metavar="MODEL", help="A name, or a folder.")]) -> None:
    """Read every file of MODEL and say what is wrong with it, a line each; then the exit status is 1."""
    folder = library.find(model)
    problems = folder.verify()
    for problem in problems:
        print(problem)
    if problems:
        raise typer.Exit(NOT_WELL)
    count, size = len(folder.manifest.files), decimal(folder.size)
    print(f"{folder.name}: all well: {count} files, {size}, {folder.revision}")


def import_(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model's name.")],
    bart: Annotated[Path, typer.Option(help="The folder of the transformer: weights and text tokenizer.")],
    vqgan: Annotated[Path, typer.Option(help="The folder of the VQGAN, or its file of weights.")],
    licence: Annotated[str, typer.Option(help="The model's licence, such as Apache-2.0.")],
    clip: Clip = DEFAULT_CLIP,
    text: Annotated[
        Path | None, typer.Option(help="The folder of the text tokenizer. [default: that of --bart]")
    ] = None,
    description: Annotated[str, typer.Option(help="A sentence on the model.")] = "",
    source: Annotated[str, typer.Option(help="Where the original files are from.")] = "",
    out: Out = None,
) -> None:
    """Make a model of original files: DALL·E mini's, min-dalle's, and a VQGAN's in any of their formats."""
    with Console(stderr=True).status(f"Importing {name} ..."):
        folder = import_model(
            name,
            licence=licence,
            bart=bart,
            vqgan=vqgan,
            clip=clip,
            text=text,
            out=out,
            description=description,
            source=source,
        )
    _announce(folder)


def pull(
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="A repository of the Hugging Face hub.")
    ],
    name: Annotated[str | None, typer.Option(help="The model's name. [default: the repository's]")] = None,
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit. [default: the newest]")
    ] = None,
    vqgan: Annotated[str, typer.Option(help="The repository of the VQGAN.")] = DEFAULT_VQGAN,
    clip: Clip = DEFAULT_CLIP,
    licence: Annotated[
        str | None, typer.Option(help="The model's licence. [default: the repository's]")
    ] = None,
    offline: Annotated[
        bool | None,
        typer.Option("--offline/--online", help="Take everything from the cache. [default: online]"),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="The folder of the cache. [default: the hub library's]")
    ] = None,
    out: Out = None,
) -> None:
    """Make a model of a repository of the Hugging Face hub: a Smalti model, or one of DALL·E mini's."""
    from smalti.models.hub import pull_model

    folder = pull_model(
        repository,
        name=name,
        revision=revision,
        vqgan=vqgan,
        clip=clip,
        licence=licence,
        offline=offline,
        cache=cache,
        out=out,
    )
    _announce(folder)


def _announce(folder: ModelFolder) -> None:
    print(f"{folder.name}: {folder.revision} in {folder.path}")


def _cells(entry: Listed) -> tuple[str, ...]:
    where = "comes with Smalti" if entry.shipped else str(entry.path)
    if entry.model is None:
        return entry.name, "", "", "", entry.problem
    manifest = entry.model.manifest
    return entry.name, manifest.revision[:SHORT_REVISION], manifest.licence, decimal(entry.model.size), where


def _fields(entry: Listed) -> dict[str, Any]:
    fields: dict[str, Any] = {"name": entry.name, "path": str(entry.path), "shipped": entry.shipped}
    if entry.model is None:
        return fields | {"problem": entry.problem}
    manifest = entry.model.manifest
    return fields | {
        "revision": manifest.revision,
        "licence": manifest.licence,
        "size": entry.model.size,
        "description": manifest.description,
        "source": manifest.source,
    }
