"""`smalti generate`: prompts in, pictures out, in this process or at a gateway."""

from pathlib import Path
from typing import Annotated

import typer

from smalti.cli import generate_local, generate_remote
from smalti.cli.generate_output import InitialImageOptions, Options
from smalti.errors import InvalidInputError
from smalti.files import load_content
from smalti.parameters import Refinement, check_diversity, check_kept, check_strength
from smalti.pictures import Drawing, load_drawing, read_image
from smalti.settings import settings

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("generate")(generate)


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="What to draw.")] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "--n", help="Number of pictures to keep, the best ones. [default: the model's, usually 9]"
        ),
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(
            help="Number of pictures to draw, from which the ranker chooses. [default: the model's, usually 16]"
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Equal seeds draw equal pictures. [default: random]")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(help="How closely to follow the prompt; 1 turns guidance off. [default: the model's]"),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Variety; 0 always takes the most probable tile. [default: the model's]"),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="Sample among the k most probable tiles; 0 for no limit. [default: the model's]"),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Sample among the most probable tiles that together reach this probability. [default: the model's]"
        ),
    ] = None,
    layout_share: Annotated[
        float | None,
        typer.Option(
            help="Share of the tiles, the first ones, that the next two options are for; 0 for none. "
            "[default: the model's]"
        ),
    ] = None,
    layout_temperature: Annotated[
        float | None, typer.Option(help="Temperature of these tiles. [default: the model's]")
    ] = None,
    layout_guidance_scale: Annotated[
        float | None, typer.Option(help="Guidance scale of these tiles. [default: the model's]")
    ] = None,
    vary: Annotated[
        bool | None,
        typer.Option(
            "--vary/--no-vary",
            help="Let candidates differ in what the prompt leaves open, such as the style. [default: the model's]",
        ),
    ] = None,
    diversity: Annotated[
        float | None,
        typer.Option(
            help="Weight of difference when pictures are chosen, from 0 (the best ones) to 1. [default: the model's]"
        ),
    ] = None,
    refine: Annotated[
        bool | None,
        typer.Option(
            "--refine/--no-refine",
            help="Draw the details of the kept pictures again, by diffusion. The model must have a refiner. "
            "[default: no]",
        ),
    ] = None,
    refine_strength: Annotated[
        float | None,
        typer.Option(help="How much the refiner may change, from 0 to 1; implies --refine. [default: 1]"),
    ] = None,
    refine_steps: Annotated[
        int | None, typer.Option(help="Evaluations of the refiner; implies --refine. [default: 4]")
    ] = None,
    upscale: Annotated[
        int | None,
        typer.Option(
            help="Enlarge the kept pictures by 2 or 4. Without --refine this adds no detail. "
            "[default: the refiner's own factor with --refine, otherwise 1]"
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A name that `smalti models` lists, or a folder; with --server, a model of the gateway, or "
            "NAME@REVISION for one of its revisions. [default: the shipped model, or the gateway's]"
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Draw at this gateway instead of in this process. [default: SMALTI_SERVER, if set]",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("pictures"),
    with_grid: Annotated[
        bool, typer.Option("--grid/--no-grid", help="Also write one picture that shows all of them.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON for each prompt.")] = False,
    image: Annotated[
        Path | None,
        typer.Option(help="A picture of which a part is kept; give one of the next three options as well."),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="A PNG file as large as the picture: tiles under its transparent part are drawn anew, all others kept."
        ),
    ] = None,
    keep_rows: Annotated[
        int | None, typer.Option(help="Number of rows of tiles to keep of the picture, from the top.")
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="Share of the picture's tiles to draw anew, between 0 and 1; each candidate draws other ones anew."
        ),
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="Draw the picture or the grid of this PNG file again.")
    ] = None,
) -> None:
    """Draw pictures of each PROMPT: sixteen candidates, of which CLIP keeps the best nine."""
    original = _original(prompts, like)
    initial = _initial_image(image, mask=mask, keep_rows=keep_rows, strength=strength)
    if initial and like is not None:
        raise InvalidInputError("like", "cannot be combined with --image; give one of them")
    sampling = {
        "guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p,
        "layout_share": layout_share, "layout_temperature": layout_temperature,
        "layout_guidance_scale": layout_guidance_scale,
    }  # fmt: skip
    options = Options(
        n=n,
        candidates=candidates,
        seed=seed,
        sampling=sampling,
        vary=vary,
        diversity=None if diversity is None else check_diversity(diversity),
        refine=_refinement(refine, strength=refine_strength, steps=refine_steps),
        upscale=upscale,
        initial=initial,
        model=model,
        out=out,
        with_grid=with_grid,
        as_json=as_json,
    )
    if server := server or settings().server:
        generate_remote.generate(server, prompts or [], original, options)
    else:
        generate_local.generate(prompts or [], original, options)


def _refinement(
    refine: bool | None, *, strength: float | None, steps: int | None
) -> Refinement | bool | None:
    """Returns how to refine: parameters, False for not at all, or None if no option says.

    Raises:
        InvalidInputError: a value is out of range, or contradicts --no-refine.
    """
    given = {name: value for name, value in (("strength", strength), ("steps", steps)) if value is not None}
    if refine is False and given:
        name = next(iter(given))
        raise InvalidInputError(f"refine-{name}", "has no effect with --no-refine; leave one of them out")
    if not refine and not given:
        return refine
    try:
        return Refinement.check(**given)
    except InvalidInputError as error:
        raise InvalidInputError(f"refine-{error.field}", error.problem) from None


def _initial_image(
    image: Path | None, *, mask: Path | None, keep_rows: int | None, strength: float | None
) -> InitialImageOptions:
    """Returns the options for a picture of which a part is kept.

    Raises:
        InvalidInputError: a file cannot be read, or the options do not fit together.
    """
    ways = {"keep_rows": keep_rows, "mask": mask, "strength": strength}
    given = [name for name, value in ways.items() if value is not None]
    if image is None:
        if given:
            raise InvalidInputError("image", f"is missing; --{given[0].replace('_', '-')} needs a picture")
        return {}
    check_kept(given)
    content = load_content(image, "image")
    # Checked here as well, since loading a model takes seconds.
    read_image(content, "image")
    if strength is not None:
        check_strength(strength)
    options: InitialImageOptions = {"initial_image": content, "keep_rows": keep_rows, "strength": strength}
    return options if mask is None else {**options, "mask": load_content(mask, "mask")}


def _original(prompts: list[str] | None, like: Path | None) -> Drawing | None:
    """Returns the drawing to repeat, if any.

    Raises:
        InvalidInputError: both prompts and --like were given, or neither.
    """
    if like is None:
        if not prompts:
            raise InvalidInputError(
                "prompt", 'is missing; say what to draw, as in smalti generate "a red balloon"'
            )
        return None
    if prompts:
        raise InvalidInputError("like", "the picture has its own prompt; give a prompt or --like, not both")
    return load_drawing(like)
