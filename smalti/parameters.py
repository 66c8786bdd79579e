"""The parameters of a picture with their ranges, the same for Python, the command, and gRPC."""

import secrets
from collections.abc import Sequence
from enum import Enum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema

from smalti.errors import InvalidInputError, NotSupportedError
from smalti.foreign_text import check_text
from smalti.validation import Strict

MAX_SEED: Final = 2**63 - 1
MAX_CANDIDATES: Final = 2**20
"""Candidate indices are below this."""
KEPT: Final = ("keep_rows", "mask", "redrawn_tiles", "strength")
"""What tells which part of an initial image is kept; one of them is given."""
FREE: Final = -1
"""Stands among given image tokens where none is given."""
UPSCALES: Final = (1, 2, 4)
"""The factors by which pictures can be enlarged."""

# Both are left out of JSON where they change nothing, so that a file or message that needs nothing new stays the same.
Flag = Annotated[bool, Field(exclude_if=lambda flag: not flag)]
"""A choice; false unless it is made."""
Diversity = Annotated[float, Field(ge=0, le=1, exclude_if=lambda weight: weight == 0)]
"""Weight of difference from each other when pictures are chosen; 0 chooses by score alone."""


class Priority(Enum):
    """The priority of a request."""

    INTERACTIVE = "interactive"
    """A user is waiting."""
    BATCH = "batch"
    """Uses what interactive requests leave free, and always a small share of the slots."""


class SamplingParameters(Strict):
    """Parameters for sampling image tokens from logits."""

    guidance_scale: Annotated[float, Field(ge=0, le=100)] = 10.0
    """Super conditioning: `unconditional + scale * (conditional - unconditional)`; 1 turns guidance off."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Divides the logits; 0 always takes the most probable token."""
    top_k: Annotated[int, Field(ge=0, le=2**20)] = 50
    """Sample among the k most probable tokens; 0 for no limit."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample among the most probable tokens that together reach this probability; 1 for no limit."""
    # Left out of JSON where they change nothing, so that files and messages without a layout part stay the same.
    layout_share: Annotated[float, Field(ge=0, le=1, exclude_if=lambda share: share == 0)] = 0.0
    """Share of the tokens, the first ones, that are sampled with the two values below: they decide the layout."""
    layout_temperature: Annotated[float, Field(ge=0, le=100, exclude_if=lambda value: value == 1)] = 1.0
    """Temperature of the layout part."""
    layout_guidance_scale: Annotated[float, Field(ge=0, le=100, exclude_if=lambda value: value == 1)] = 1.0
    """Guidance scale of the layout part."""

    def every_value(self) -> dict[str, Any]:
        """Returns the values by name, with those that JSON leaves out."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def replace(self, **changes: float | None) -> Self:
        """Returns these parameters with changes; None leaves a parameter as it is.

        Raises:
            InvalidInputError: a value is out of range; names the field.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        return self.check(**{**self.every_value(), **given})


class Refinement(Strict):
    """Parameters of the refiner, which draws the details of a picture again."""

    strength: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the way from noise to picture that is run: 0 keeps the enlarged picture, 1 redraws the most."""
    steps: Annotated[int, Field(ge=1, le=64)] = 4
    """Number of evaluations of the network."""


class SecondPass(Strict):
    """What happens to the chosen pictures after ranking."""

    upscale: Literal[1, 2, 4] = 1
    """Factor by which width and height grow."""
    refine: Refinement | None = None
    """None enlarges without a network."""


class Counts(Strict):
    """Number of candidates to generate, and number of pictures to keep."""

    n: Annotated[int, Field(ge=1, le=1024)] = 9
    candidates: Annotated[int, Field(ge=1, le=1024)] = 16


class Defaults(Counts):
    """What a request gets that does not say otherwise."""

    vary: Flag = False
    """Whether candidates differ in what the prompt leaves open, such as the style."""
    diversity: Diversity = 0.0
    """Weight of difference from each other when the pictures are chosen; 0 chooses by score alone."""


Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
CandidateIndex = Annotated[int, Field(ge=0, lt=MAX_CANDIDATES)]


def _seed_of_digits(seed: Any) -> Any:
    """Returns a seed that is a text of digits as a number: JavaScript reads numbers exactly only up to 2^53.

    Everything else is returned as it is.
    """
    is_number = (
        isinstance(seed, str) and seed.isascii() and seed.isdigit() and len(seed) <= len(str(MAX_SEED))
    )
    return int(seed) if is_number else seed


ReceivedSeed = Annotated[
    int,
    BeforeValidator(_seed_of_digits),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string", "pattern": "^[0-9]{1,19}$"}]}),
]
"""A seed. A string of digits is taken too, as answers have it: JavaScript reads numbers exactly only up to 2^53."""


class DrawingParameters(Strict):
    """How pictures are drawn and chosen. What is missing takes the default of the model; ranges are checked with it."""

    # Strict: a number that is sent as text is a mistake of the program.
    model_config = ConfigDict(strict=True, use_attribute_docstrings=True)

    seed: ReceivedSeed | None = None
    """Equal seeds give equal pictures; random if it is missing. A number, or a string of digits, as answers have it."""
    candidates: int | None = None
    """Number of pictures to draw, of which the best `n` are returned."""
    guidance_scale: float | None = None
    """How strongly the prompt is followed, from 0 to 100; 1 turns guidance off."""
    temperature: float | None = None
    """Divisor of the logits, from 0 to 100; 0 always takes the most probable tile."""
    top_k: int | None = None
    """Sample among the k most probable tiles; 0 for no limit."""
    top_p: float | None = None
    """Sample among the most probable tiles that together reach this probability; 1 for no limit."""
    layout_share: float | None = None
    """Share of the tiles, the first ones, to which the next two apply; 0 for none."""
    layout_temperature: float | None = None
    """The temperature of these tiles."""
    layout_guidance_scale: float | None = None
    """The guidance scale of these tiles."""
    vary: bool | None = None
    """Whether candidates differ in what the prompt leaves open, such as the style."""
    diversity: float | None = None
    """Weight of difference from each other when pictures are chosen, from 0 to 1; 0 chooses by score alone."""

    def drawing_values(self) -> dict[str, Any]:
        """Returns these parameters by name."""
        return {name: getattr(self, name) for name in DrawingParameters.model_fields}


def check_counts(n: int, candidates: int) -> Counts:
    """Returns the counts.

    Raises:
        InvalidInputError: a count is out of range, or `n` is larger than `candidates`.
    """
    counts = Counts.check(n=n, candidates=candidates)
    if n > candidates:
        raise InvalidInputError(
            "n", f"{n} pictures cannot be chosen from {candidates} candidates; use more candidates"
        )
    return counts


def check_diversity(diversity: float) -> float:
    """Returns the weight of difference among the chosen pictures.

    Raises:
        InvalidInputError: the weight is out of range.
    """
    # Written so that NaN is refused too.
    if not 0 <= diversity <= 1:
        raise InvalidInputError("diversity", f"must be from 0 to 1, not {diversity}")
    return float(diversity)


def check_kept(names: Sequence[str]) -> None:
    """Checks that one thing tells which part of an initial image is kept.

    Args:
        names: those of `KEPT` that are given.

    Raises:
        InvalidInputError: several or none are given.
    """
    if len(names) > 1:
        raise InvalidInputError(names[1], f"cannot be combined with {names[0]}; give one of the two")
    if not names:
        raise InvalidInputError(
            "keep_rows", f"must be set for an initial image; give one of {', '.join(KEPT)}"
        )


def check_keep_rows(keep_rows: int, side: int) -> int:
    """Returns the number of rows that are kept of a picture with `side` rows.

    Raises:
        InvalidInputError: it is out of range.
    """
    if not 1 <= keep_rows < side:
        raise InvalidInputError("keep_rows", f"must be between 1 and {side - 1}, got {keep_rows}")
    return keep_rows


def check_strength(strength: float) -> float:
    """Returns the share of an initial image that is drawn anew.

    Raises:
        InvalidInputError: it is not between 0 and 1.
    """
    if not 0 < strength < 1:
        raise InvalidInputError(
            "strength",
            f"must be greater than 0 (all is kept) and less than 1 (all is drawn anew), got {strength:g}",
        )
    return float(strength)


def check_second_pass(
    refine: Refinement | bool | None, upscale: int | None, trained_upscale: int | None
) -> SecondPass | None:
    """Returns the second pass; None if there is none.

    Args:
        refine: the parameters of the refiner; True for the defaults, False or None for no refiner.
        upscale: the factor by which pictures are enlarged; None for the refiner's own, or 1 without a refiner.
        trained_upscale: the factor that the model's refiner was trained for; None if the model has no refiner.

    Raises:
        InvalidInputError: the factor cannot be used.
        NotSupportedError: the model has no refiner.
    """
    if upscale is not None and (isinstance(upscale, bool) or upscale not in UPSCALES):
        raise InvalidInputError("upscale", f"must be 1, 2 or 4, not {upscale}")
    if refine is True:
        refine = Refinement()
    if not isinstance(refine, Refinement):
        return SecondPass.check(upscale=upscale) if upscale not in (None, 1) else None
    if trained_upscale is None:
        raise NotSupportedError(
            "the model has no refiner; leave refine out, or use upscale alone, which needs none"
        )
    return SecondPass.check(upscale=trained_upscale if upscale is None else upscale, refine=refine)


def check_prompt(prompt: str) -> str:
    """Returns the prompt without the white space around it.

    Raises:
        InvalidInputError: nothing is left, or it is not a valid text.
    """
    prompt = check_text(prompt, "prompt").strip()
    if not prompt:
        raise InvalidInputError("prompt", "is empty; say what to draw")
    return prompt


def check_seed(seed: int | None) -> int:
    """Returns the seed; a random one for None.

    Raises:
        InvalidInputError: the seed is out of range.
    """
    if seed is None:
        # Small enough to be read aloud and typed again.
        return secrets.randbelow(2**32)
    if not 0 <= seed <= MAX_SEED:
        raise InvalidInputError("seed", f"must be from 0 to 2^63 - 1, not {seed}")
    return seed
