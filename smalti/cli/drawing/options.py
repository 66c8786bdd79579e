"""Options of commands that draw; the defaults are those of the model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

from smalti.errors import InvalidInputError
from smalti.parameters import Refinement

if TYPE_CHECKING:
    from smalti.client import RequestOptions

REVISION_MARK: Final = "@"
"""Between the name of a model and its revision."""

Count = Annotated[
    int | None,
    typer.Option("--n", help="Number of pictures to keep, the best ones. [default: the model's, usually 9]"),
]
Candidates = Annotated[
    int | None,
    typer.Option(
        help="Number of pictures to draw, from which the ranker chooses. [default: the model's, usually 16]"
    ),
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(help="How closely to follow the prompt; 1 turns guidance off. [default: the model's]"),
]
Temperature = Annotated[
    float | None,
    typer.Option(help="Variety; 0 always takes the most probable tile. [default: the model's]"),
]
TopK = Annotated[
    int | None,
    typer.Option(help="Sample among the k most probable tiles; 0 for no limit. [default: the model's]"),
]
TopP = Annotated[
    float | None,
    typer.Option(
        help="Sample among the most probable tiles that together reach this probability. [default: the model's]"
    ),
]
LayoutShare = Annotated[
    float | None,
    typer.Option(
        help="Share of the tiles, the first ones, that the next two options are for; 0 for none. "
        "[default: the model's]"
    ),
]
LayoutTemperature = Annotated[
    float | None, typer.Option(help="Temperature of these tiles. [default: the model's]")
]
LayoutGuidanceScale = Annotated[
    float | None, typer.Option(help="Guidance scale of these tiles. [default: the model's]")
]
Vary = Annotated[
    bool | None,
    typer.Option(
        "--vary/--no-vary",
        help="Let candidates differ in what the prompt leaves open, such as the style. [default: the model's]",
    ),
]
DiversityWeight = Annotated[
    float | None,
    typer.Option(
        help="Weight of difference when pictures are chosen, from 0 (the best ones) to 1. [default: the model's]"
    ),
]
Refine = Annotated[
    bool | None,
    typer.Option(
        "--refine/--no-refine",
        help="Draw the details of the kept pictures again, by diffusion. The model must have a refiner. "
        "[default: no]",
    ),
]
RefineStrength = Annotated[
    float | None,
    typer.Option(help="How much the refiner may change, from 0 to 1; implies --refine. [default: 1]"),
]
RefineSteps = Annotated[
    int | None, typer.Option(help="Evaluations of the refiner; implies --refine. [default: 4]")
]
Upscale = Annotated[
    int | None,
    typer.Option(
        help="Enlarge the kept pictures by 2 or 4. Without --refine this adds no detail. "
        "[default: the refiner's own factor with --refine, otherwise 1]"
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="A name that `smalti models` lists, or a folder; with --server, a model of the gateway, or "
        "NAME@REVISION for one of its revisions. [default: the shipped model, or the gateway's]"
    ),
]
Server = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Draw at this gateway instead of in this process. [default: SMALTI_SERVER, if set]",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, kw_only=True)
class DrawingOptions:
    """The options that commands share; None for one that was not given."""

    n: int | None
    candidates: int | None
    seed: int | None
    sampling: dict[str, float | None]
    """Values of `SamplingParameters` by name."""
    vary: bool | None
    diversity: float | None
    refine: Refinement | bool | None
    """How to refine the pictures; False for not at all."""
    upscale: int | None
    model: str | None

    def shared_request(self) -> "RequestOptions":
        """Returns these options for a gateway."""
        model, _, revision = (self.model or "").partition(REVISION_MARK)
        return {
            "n": self.n,
            "candidates": self.candidates,
            "seed": self.seed,
            "vary": self.vary,
            "diversity": self.diversity,
            "refine": self.refine,
            "upscale": self.upscale,
            "model": model or None,
            "revision": revision or None,
            **self.sampling,  # type: ignore[typeddict-item]
        }


def refinement(refine: bool | None, *, strength: float | None, steps: int | None) -> Refinement | bool | None:
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
