"""`smalti generate`: prompts in, pictures out, in this process or at a gateway."""

from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.drawing import local, options, remote
from smalti.cli.drawing.output import InitialImageOptions, Options
from smalti.errors import InvalidInputError
from smalti.files import load_content
from smalti.parameters import check_diversity, check_kept, check_strength
from smalti.pictures import Drawing, load_drawing, read_image
from smalti.settings import settings

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("generate")(generate)


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="What to draw.")] = None,
    n: options.Count = None,
    candidates: options.Candidates = None,
    seed: Annotated[
        int | None, typer.Option(help="Equal seeds draw equal pictures. [default: random]")
    ] = None,
    guidance_scale: options.GuidanceScale = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    layout_share: options.LayoutShare = None,
    layout_temperature: options.LayoutTemperature = None,
    layout_guidance_scale: options.LayoutGuidanceScale = None,
    vary: options.Vary = None,
    diversity: options.DiversityWeight = None,
    refine: options.Refine = None,
    refine_strength: options.RefineStrength = None,
    refine_steps: options.RefineSteps = None,
    upscale: options.Upscale = None,
    model: options.Model = None,
    server: options.Server = None,
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
    given = Options(
        n=n,
        candidates=candidates,
        seed=seed,
        sampling=sampling,
        vary=vary,
        diversity=None if diversity is None else check_diversity(diversity),
        refine=options.refinement(refine, strength=refine_strength, steps=refine_steps),
        upscale=upscale,
        initial=initial,
        model=model,
        out=out,
        with_grid=with_grid,
        as_json=as_json,
    )
    if server := server or settings().server:
        remote.generate(server, prompts or [], original, given)
    else:
        local.generate(prompts or [], original, given)


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
