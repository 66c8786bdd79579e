"""`smalti generate`: prompts in, pictures out, in this process or at a gateway."""

from pathlib import Path
from typing import Annotated

import typer

from smalti.cli import local, remote
from smalti.cli.drawn import Options
from smalti.errors import InvalidInputError
from smalti.pictures import Drawing, read_drawing
from smalti.settings import settings


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
        typer.Option(
            help="A name that `smalti models` lists, or a folder; with --server one that it has. "
            "[default: the shipped one, or the server's]"
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Draw at this gateway, not in this process. [default: SMALTI_SERVER, if it is set]",
        ),
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
    original = _original(prompts, like)
    sampling = {
        "guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p,
    }  # fmt: skip
    options = Options(n, candidates, seed, sampling, model, out, with_grid, as_json)
    if server := server or settings().server:
        remote.generate(server, prompts or [], original, options)
    else:
        local.generate(prompts or [], original, options)


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


__all__ = ["register"]
