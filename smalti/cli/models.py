"""`smalti models`, `verify`, `import`, `pull` and `push`: listing, checking, adding and storing models."""

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.columns import Columns
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from smalti.cli.extras import needs_extra
from smalti.cli.operations import tables
from smalti.errors import InvalidInputError
from smalti.registry import library
from smalti.registry.folder import ModelFolder
from smalti.registry.importing import DEFAULT_CLIP, DEFAULT_VQGAN, import_model
from smalti.registry.library import ListedModel
from smalti.registry.verify import find_file_problems, find_problems
from smalti.storage import S3_SCHEME, ObjectStore, open_address
from smalti.text.vocabulary import load_words

FOUND_PROBLEMS = 1
"""Exit status of `verify` for a damaged model; 2 is for wrong usage."""
SHORT_REVISION = len("sha256:") + 12

Clip = Annotated[
    str,
    typer.Option(
        help="Folder in open_clip's format, or name and tag of a pretrained model: ViT-B-32:openai."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder to create. [default: the model's name, in the folder of your models]"),
]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("models")(models)
    app.command("verify")(verify)
    app.command("import")(import_)
    app.command("pull")(pull)
    app.command("push")(push)


def models(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="Whose words to print: a name, or a folder. [default: the shipped model]"
        ),
    ] = None,
    words: Annotated[bool, typer.Option("--words", help="Print the words that MODEL knows.")] = False,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="List what this gateway can draw with now, instead of this machine's models.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models that come with Smalti and your own, those of a gateway, or the words that a model knows."""
    if server is not None:
        if words or model is not None:
            raise InvalidInputError("server", "lists models alone; leave out MODEL and --words")
        _list_remote(server, as_json)
        return
    if words:
        _print_words(library.find(model), as_json)
        return
    if model is not None:
        raise InvalidInputError(
            "MODEL", f"{model}: add --words to list its words: smalti models --words {model}"
        )
    listed = library.list_models()
    if as_json:
        print(json.dumps([_fields(entry) for entry in listed], indent=2))
        return
    if not listed:
        print("There are no models yet; `smalti import` and `smalti pull` add them.")
        return
    tables.print_table(("name", "revision", "licence", "size", "where"), map(_cells, listed))


def _list_remote(server: str, as_json: bool) -> None:
    """Prints the revisions that a gateway can draw with now."""
    with needs_extra("client"):
        from smalti.client import Client

    with Client(server) as client:
        found = list(client.models())
    if as_json:
        entries = [
            {
                "name": each.reference.name,
                "revision": each.reference.revision,
                "default": each.default,
                "available": each.available,
                "slots": each.slots,
                "licence": each.licence,
                "description": each.description,
            }
            for each in found
        ]
        print(json.dumps(entries, indent=2))
        return
    rows = (
        (
            each.reference.name,
            each.reference.revision[:SHORT_REVISION],
            str(each.slots or "unknown"),
            each.licence,
            "default" if each.default else "",
        )
        for each in found
    )
    tables.print_table(("name", "revision", "slots", "licence", ""), rows)


def verify(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name, or a folder.")],
    files: Annotated[
        bool, typer.Option("--files", help="Compare the files with model.json, and no more; needs no JAX.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Revision that the model must have: sha256: and 64 digits.")
    ] = None,
) -> None:
    """Check every file of MODEL. Each problem is printed on a line, and the exit status is then 1."""
    folder = library.find(model)
    problems = list(find_file_problems(folder)) if files else find_problems(folder)
    if revision not in (None, folder.revision):
        problems.insert(0, f"{folder.path}: revision: is {folder.revision}, but must be {revision}")
    for problem in problems:
        print(problem)
    if problems:
        raise typer.Exit(FOUND_PROBLEMS)
    count, size = len(folder.manifest.files), decimal(folder.size)
    print(f"{folder.name}: no problems: {count} files, {size}, {folder.revision}")


def import_(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the model.")],
    bart: Annotated[
        Path, typer.Option(help="Folder of the transformer, with its weights and text tokenizer.")
    ],
    vqgan: Annotated[Path, typer.Option(help="Folder of the VQGAN, or its weights file.")],
    licence: Annotated[str, typer.Option(help="Licence of the model, such as Apache-2.0.")],
    clip: Clip = DEFAULT_CLIP,
    text: Annotated[
        Path | None, typer.Option(help="Folder of the text tokenizer. [default: the folder of --bart]")
    ] = None,
    description: Annotated[str, typer.Option(help="Description of the model, a sentence.")] = "",
    source: Annotated[str, typer.Option(help="Where the original files come from.")] = "",
    out: Out = None,
) -> None:
    """Make a model from original files: DALL·E mini's, min-dalle's, and a VQGAN's in any of their formats."""
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
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="OWNER/NAME, a repository of the Hugging Face hub; or s3://BUCKET/PREFIX, where `smalti push` has "
            "stored the model.",
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the model. [default: the source's]")] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the hub. [default: the newest commit]")
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(help="The model in the store, as `smalti push` has printed it.")
    ] = None,
    vqgan: Annotated[str, typer.Option(help="Repository of the VQGAN.")] = DEFAULT_VQGAN,
    clip: Clip = DEFAULT_CLIP,
    licence: Annotated[
        str | None, typer.Option(help="Licence of the model. [default: the repository's]")
    ] = None,
    offline: Annotated[
        bool | None,
        typer.Option("--offline/--online", help="Use only what the cache holds. [default: online]"),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of the cache. [default: the hub library's]")
    ] = None,
    out: Out = None,
) -> None:
    """Make a model from a repository of the Hugging Face hub, in Smalti's or DALL·E mini's format, or from a store."""
    if source.startswith(S3_SCHEME):
        if revision is not None:
            raise InvalidInputError("revision", "is for the hub; give --sha256 for a model in a store")
        _pull_stored(source, sha256, name, out)
        return
    if sha256 is not None:
        raise InvalidInputError(
            "sha256", "is for s3:// addresses; give --revision for a repository of the hub"
        )
    from smalti.registry.huggingface import pull_model

    folder = pull_model(
        source,
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


def _pull_stored(source: str, sha256: str | None, name: str | None, out: Path | None) -> None:
    """Pulls a model from a store, and prints how much was received."""
    sha256 = (sha256 or "").removeprefix("sha256:")
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise InvalidInputError("sha256", "must be the 64 digits that `smalti push` has printed")
    with needs_extra("service"):
        from smalti.registry.stored import pull_stored

        store, prefix = _store_of(source, "SOURCE")
    with Console(stderr=True).status(f"Pulling {source} ..."):
        folder, count = pull_stored(store, prefix, sha256, name=name, out=out)
    _announce(folder, f", {decimal(count)} received")


def push(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name, or a folder.")],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="s3://BUCKET/PREFIX: where in a store to put it.")
    ],
) -> None:
    """Store MODEL in S3, each file under its SHA-256, and print the SHA-256 by which `smalti pull` finds it there."""
    folder = library.find(model)
    if not target.startswith(S3_SCHEME):
        raise InvalidInputError("TARGET", f"must be s3://BUCKET/PREFIX, got {target!r:.120}")
    with needs_extra("service"):
        from smalti.registry.stored import push_model

        store, prefix = _store_of(target, "TARGET")
    with Console(stderr=True).status(f"Pushing {folder.name} ..."):
        sha256, count = push_model(folder, store, prefix)
    print(f"{folder.name}: sha256:{sha256} in {target}, {decimal(count)} sent")


def _store_of(address: str, field: str) -> tuple[ObjectStore, str]:
    """Returns the store of an address, and what keys begin with there."""
    store, key = open_address(address, field)
    return store, f"{key}/" if key else ""


def _print_words(folder: ModelFolder, as_json: bool) -> None:
    """Prints the words that a model knows."""
    words = load_words(folder.words_file)
    if as_json:
        print(json.dumps({"model": folder.name, "words": words and words.model_dump(mode="json")}, indent=2))
        return
    if words is None:
        print(f"{folder.name} reads any text; it has no list of words")
        return
    console = Console(highlight=False)
    console.print(
        f"{folder.name} knows {len(words.things)} things and draws one or two of them:\n", markup=False
    )
    console.print(Columns(words.things, padding=(0, 2), equal=True, column_first=True))
    listed = {
        "in the colours": words.colours,
        "on a background": words.backgrounds,
        "in the sizes": words.sizes,
        "at the places": words.places,
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
        console.print(f"\nIt replaces {others} other words by the nearest of these; --json lists them.")


def _announce(folder: ModelFolder, more: str = "") -> None:
    print(f"{folder.name}: {folder.revision} in {folder.path}{more}")


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
