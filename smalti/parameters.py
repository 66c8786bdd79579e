"""What a user can ask of a drawing, with the range of each value, the same on every surface."""

import secrets
from enum import Enum
from typing import Annotated, Self

from pydantic import Field

from smalti.errors import InvalidInputError
from smalti.validation import Strict

MAX_SEED = 2**63 - 1


class Priority(Enum):
    """Who is served first."""

    INTERACTIVE = "interactive"
    """Somebody is waiting."""
    BATCH = "batch"
    """Takes what interactive requests leave, and always a small share of the slots."""


class SamplingParameters(Strict):
    """How image tokens are drawn from logits."""

    guidance_scale: Annotated[float, Field(ge=0, le=100)] = 10.0
    """Super conditioning: `uncond + scale * (cond - uncond)`; 1 is none."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Divides the logits; 0 always takes the most probable token."""
    top_k: Annotated[int, Field(ge=0, le=2**20)] = 50
    """Draw among the k most probable tokens only; 0 is no limit."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw among the most probable tokens that together reach this probability; 1 is no limit."""

    def replace(self, **asked: float | None) -> Self:
        """Returns these parameters with those that are asked for, and not None, in their place.

        Raises:
            InvalidInputError: a value is out of its range; names the field.
        """
        given = {name: value for name, value in asked.items() if value is not None}
        return self.check(**{**self.model_dump(), **given})


class Counts(Strict):
    """How many candidates are drawn, and how many of them are kept."""

    n: Annotated[int, Field(ge=1, le=1024)] = 9
    candidates: Annotated[int, Field(ge=1, le=1024)] = 16


Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


def check_counts(n: int, candidates: int) -> Counts:
    """Returns the counts; raises `InvalidInputError` when one is out of range, or n > candidates."""
    counts = Counts.check(n=n, candidates=candidates)
    if n > candidates:
        raise InvalidInputError(
            "n", f"{n} pictures cannot be chosen from {candidates} candidates; ask for more"
        )
    return counts


def check_prompt(prompt: str) -> str:
    """Returns the prompt without the space around it; raises `InvalidInputError` when nothing is left."""
    prompt = prompt.strip()
    if not prompt:
        raise InvalidInputError("prompt", "it is empty; say what to draw")
    return prompt


def check_seed(seed: int | None) -> int:
    """Returns the seed, a random one for None; raises `InvalidInputError` when it is out of range."""
    if seed is None:
        # Short enough to be read out and typed again.
        return secrets.randbelow(2**32)
    if not 0 <= seed <= MAX_SEED:
        raise InvalidInputError("seed", f"{seed} is not between 0 and 2^63 - 1")
    return seed
