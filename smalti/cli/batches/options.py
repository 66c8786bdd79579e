"""The options of `smalti batch run` and `submit`, and what they mean here and at a gateway."""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from smalti.cli import drawing
from smalti.errors import InvalidInputError
from smalti.parameters import check_diversity, check_second_pass, check_seed

if TYPE_CHECKING:
    from smalti.batches import BatchDefaults
    from smalti.client import BatchOptions
    from smalti.registry.spec import ModelSpec

SHARD_PROMPTS: Final = 256


class Format(StrEnum):
    """Formats of pictures, as `smalti.batches.PictureFormat`."""

    PNG = "png"
    WEBP = "webp"


class RowFormat(StrEnum):
    """Formats of inputs, as `smalti.batches.InputFormat`."""

    TEXT = "text"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


File = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="The prompts: .txt (a prompt a line), .jsonl, .csv or .parquet; - for standard input; or s3://BUCKET/KEY.",
    ),
]
Out = Annotated[
    str,
    typer.Option("--out", metavar="PLACE", help="Folder for the pictures, or s3://BUCKET/PREFIX."),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Seed of the batch, from which those of prompts without one follow. [default: 0]"),
]
PictureFormat = Annotated[
    Format, typer.Option("--format", help="Format of the pictures; webp is smaller, with some loss.")
]
ShardPrompts = Annotated[
    int, typer.Option("--shard", min=1, max=1024, help="Prompts whose pictures go into one tar.")
]
InputFormat = Annotated[
    RowFormat | None,
    typer.Option(help="Format of the input. [default: by its ending, and text for standard input]"),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column", metavar="NAME=COLUMN", help="Reads the column NAME from COLUMN: prompt=caption."
    ),
]
IgnoreColumns = Annotated[
    bool, typer.Option("--ignore-columns", help="Ignore columns that have no meaning here.")
]
SkipInvalid = Annotated[
    bool, typer.Option("--skip-invalid", help="Leave out rows that cannot be used, and report them.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, and print what it would cost; draw nothing.")
]
Slots = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help="Candidates that are drawn at a time. [default: 16, or no limit]"),
]
Name = Annotated[str, typer.Option(help="A name for the batch, with --server.")]
Rank = Annotated[
    int | None,
    typer.Option(min=0, max=100, help="Batches of a higher rank are drawn first, with --server."),
]


@dataclass(frozen=True, kw_only=True)
class RunOptions(drawing.DrawingOptions):
    """The options; None for one that was not given."""

    source: str
    picture_format: Format
    shard_prompts: int
    input_format: RowFormat | None
    columns: dict[str, str]
    ignore_columns: bool
    skip_invalid: bool
    slots: int | None
    name: str = ""
    rank: int | None = None

    def defaults(self, spec: "ModelSpec") -> "BatchDefaults":
        """Returns what rows get that do not say otherwise, for a model of this machine.

        Raises:
            SmaltiError: a value is out of range, or the model has no refiner.
        """
        from smalti.batches import BatchDefaults

        folder = spec.folder
        defaults = BatchDefaults.check(
            seed=check_seed(self.seed or 0),
            n=self.n,
            candidates=self.candidates,
            default_n=folder.defaults.n,
            default_candidates=folder.defaults.candidates,
            sampling=folder.sampling.replace(**self.sampling),
            vary=folder.defaults.vary if self.vary is None else self.vary,
            diversity=check_diversity(
                folder.defaults.diversity if self.diversity is None else self.diversity
            ),
            second_pass=check_second_pass(self.refine, self.upscale, spec.trained_upscale),
        )
        defaults.counts()
        return defaults

    def request(self) -> "BatchOptions":
        """Returns the options for a gateway."""
        return {
            **self.shared_request(),
            "picture_format": self.picture_format.value,
            "shard_prompts": self.shard_prompts,
            "format": self.input_format and self.input_format.value,
            "columns": self.columns,
            "ignore_columns": self.ignore_columns,
            "skip_invalid": self.skip_invalid,
            "slots": self.slots,
            "name": self.name,
            "rank": self.rank,
        }


def takes_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of `run_options` beside its own; its first parameter gets what they mean.

    `run` and `submit` have twenty-five options in common, which stand once this way.
    """
    shared = inspect.signature(run_options).parameters
    own = list(inspect.signature(command).parameters.values())[1:]

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        of_run = {name: given.pop(name) for name in shared}
        command(run_options(**of_run), **given)

    wrapper.__signature__ = inspect.Signature([*shared.values(), *own])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {each.name: each.annotation for each in (*shared.values(), *own)}
    return wrapper


def run_options(
    *,
    file: File,
    n: drawing.Count = None,
    candidates: drawing.Candidates = None,
    seed: Seed = None,
    guidance_scale: drawing.GuidanceScale = None,
    temperature: drawing.Temperature = None,
    top_k: drawing.TopK = None,
    top_p: drawing.TopP = None,
    layout_share: drawing.LayoutShare = None,
    layout_temperature: drawing.LayoutTemperature = None,
    layout_guidance_scale: drawing.LayoutGuidanceScale = None,
    vary: drawing.Vary = None,
    diversity: drawing.DiversityWeight = None,
    refine: drawing.Refine = None,
    refine_strength: drawing.RefineStrength = None,
    refine_steps: drawing.RefineSteps = None,
    upscale: drawing.Upscale = None,
    model: drawing.Model = None,
    picture_format: PictureFormat = Format.PNG,
    shard: ShardPrompts = SHARD_PROMPTS,
    input_format: InputFormat = None,
    column: Columns = None,
    ignore_columns: IgnoreColumns = False,
    skip_invalid: SkipInvalid = False,
    slots: Slots = None,
) -> RunOptions:
    """Returns the options of a run, as the command line has them.

    Raises:
        InvalidInputError: an option is out of range, or has another form.
    """
    sampling = {
        "guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p,
        "layout_share": layout_share, "layout_temperature": layout_temperature,
        "layout_guidance_scale": layout_guidance_scale,
    }  # fmt: skip
    return RunOptions(
        source=file,
        n=n,
        candidates=candidates,
        seed=seed,
        sampling=sampling,
        vary=vary,
        diversity=diversity,
        refine=drawing.refinement(refine, strength=refine_strength, steps=refine_steps),
        upscale=upscale,
        model=model,
        picture_format=picture_format,
        shard_prompts=shard,
        input_format=input_format,
        columns=columns_of(column),
        ignore_columns=ignore_columns,
        skip_invalid=skip_invalid,
        slots=slots,
    )


def columns_of(given: Sequence[str] | None) -> dict[str, str]:
    """Returns the columns that are called otherwise, by the names that they have here.

    Raises:
        InvalidInputError: an option has another form, or names a column twice.
    """
    columns: dict[str, str] = {}
    for each in given or ():
        name, mark, column = each.partition("=")
        if not (name and mark and column):
            raise InvalidInputError(
                "column", f"must have the form NAME=COLUMN, as in prompt=caption, got {each!r:.80}"
            )
        if name in columns:
            raise InvalidInputError("column", f"names {name} twice; give it once")
        columns[name] = column
    return columns
