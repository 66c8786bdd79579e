"""`smalti models`, `verify`, `import` and `pull`: which models there are, and how new ones come."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.columns import Columns
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from smalti.errors import InvalidInputError
from smalti.registry import library
from smalti.registry.folder import ModelFolder
from smalti.registry.importing import DEFAULT_CLIP, DEFAULT_VQGAN, import_model
from smalti.registry.library import ListedModel
from smalti.registry.verify import find_problems
from smalti.text.vocabulary import load_words

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


def models(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="Whose words: a name, or a folder. [default: the shipped one]"
        ),
    ] = None,
    words: Annotated[bool, typer.Option("--words", help="Print the words that MODEL knows.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models that have a name: those that come with Smalti, and yours; or the words that one knows."""
    if words:
        _print_words(library.find(model), as_json)
        return
    if model is not None:
        raise InvalidInputError("MODEL", f"{model}: say what of it: smalti models --words {model}")
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
    problems = find_problems(folder)
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
    from smalti.registry.huggingface import pull_model

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


def _print_words(folder: ModelFolder, as_json: bool) -> None:
    """Prints the words that a model knows."""
    words = load_words(folder.words_file)
    if as_json:
        print(json.dumps({"model": folder.name, "words": words and words.model_dump(mode="json")}, indent=2))
        return
    if words is None:
        print(f"{folder.name} reads any text: it has no list of words")
        return
    console = Console(highlight=False)
    console.print(
        f"{folder.name} knows {len(words.things)} things, and draws one or two of them:\n", markup=False
    )
    console.print(Columns(words.things, padding=(0, 2), equal=True, column_first=True))
    listed = {
        "in the colours": words.colours,
        "on a background": words.backgrounds,
        "in the sizes": words.sizes,
        "in the styles": words.styles,
    }
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for kind, known in listed.items():
        if known:
            table.add_row(kind, Text(", ".join(known)))
    console.print()
    console.print(table)
    others = len(words.synonyms) + len(words.neighbours)
    if others:
        console.print(f"\nFor {others} other words it knows the nearest of these; --json lists them all.")


def _announce(folder: ModelFolder) -> None:
    print(f"{folder.name}: {folder.revision} in {folder.path}")


def _cells(entry: ListedModel) -> tuple[str, ...]:
    where = "comes with Smalti" if entry.shipped else str(entry.path)
    if entry.model is None:
        return entry.name, "", "", "", entry.problem
    manifest = entry.model.manifest
    return entry.name, manifest.revision[:SHORT_REVISION], manifest.licence, decimal(entry.model.size), where


def _fields(entry: ListedModel) -> dict[str, Any]:
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
