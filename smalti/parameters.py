"""The parameters of a picture with their ranges, the same for Python, the command, and gRPC."""

import secrets
from enum import Enum
from typing import Annotated, Final, Self

from pydantic import Field

from smalti.errors import InvalidInputError
from smalti.validation import Strict

MAX_SEED: Final = 2**63 - 1


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

    def replace(self, **changes: float | None) -> Self:
        """Returns these parameters with changes; None leaves a parameter as it is.

        Raises:
            InvalidInputError: a value is out of range; names the field.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        return self.check(**{**self.model_dump(), **given})


class Counts(Strict):
    """Number of candidates to generate, and number of pictures to keep."""

    n: Annotated[int, Field(ge=1, le=1024)] = 9
    candidates: Annotated[int, Field(ge=1, le=1024)] = 16


Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


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


def check_prompt(prompt: str) -> str:
    """Returns the prompt without the white space around it.

    Raises:
        InvalidInputError: nothing is left.
    """
    prompt = prompt.strip()
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
