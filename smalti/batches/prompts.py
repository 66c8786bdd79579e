"""The prompts of a batch before and after they are drawn: a JSON object in a line each."""

import hashlib
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Final, Literal, TypeVar

from pydantic import Field, StringConstraints, ValidationError, model_validator

from smalti.batches.layout import MAX_IN_SHARD
from smalti.errors import DamagedObjectError
from smalti.messages import MAX_PROMPT_LENGTH
from smalti.parameters import (
    MAX_SEED,
    CandidateIndex,
    Diversity,
    Flag,
    SamplingParameters,
    SecondPass,
    Seed,
)
from smalti.storage import Sha256
from smalti.validation import Strict, first_problem

MAX_ID_LENGTH: Final = 256
MAX_PROBLEM_LENGTH: Final = 500
POLICY_PROBLEM: Final = "the operator's policy refuses the prompt"
"""The beginning of the problem of a prompt that the operator's policy refuses."""
Line = Annotated[int, Field(ge=0, lt=2**40)]
Row = TypeVar("Row", bound=Strict)


class PictureFormat(StrEnum):
    """The format of the pictures of a batch."""

    PNG = "png"
    WEBP = "webp"
    """With some loss; quality 90."""


class BatchPrompt(Strict):
    """A prompt of a batch, with everything that decides what is drawn for it."""

    row: Line
    """Number of the row in the input, from 0, blank lines not counted."""
    id: Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_LENGTH)]
    """The id that the input gives it, or else the number of the row."""
    prompt: Annotated[str, StringConstraints(max_length=MAX_PROMPT_LENGTH)]
    """What to draw; of an invalid row, what can be shown of it, which may be empty."""
    seed: Seed
    n: Annotated[int, Field(ge=1, le=1024)]
    candidates: Annotated[int, Field(ge=1, le=1024)]
    sampling: SamplingParameters
    vary: Flag = False
    diversity: Diversity = 0.0
    second_pass: SecondPass | None = Field(default=None, exclude_if=lambda given: given is None)
    given: tuple[int, ...] = Field(default=(), exclude_if=lambda given: not given)
    """Image tokens of an initial image, as `StageTask.given`."""
    strength: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, exclude_if=lambda given: given is None
    )
    problem: str | None = Field(default=None, exclude_if=lambda given: given is None)
    """Why it must not be drawn, such as a policy's refusal; None for all others."""
    invalid: Flag = False
    """Whether the row of the input cannot be used; `problem` tells why."""

    @model_validator(mode="after")
    def _check_prompt(self) -> "BatchPrompt":
        if self.problem is None and (self.invalid or not self.prompt):
            raise ValueError("a prompt without text, or of an invalid row, needs a problem")
        return self

    @property
    def key(self) -> str:
        """The beginning of the names of its files in a tar; what follows is "-" and the rank of the picture."""
        return f"{self.row:09d}"


class ShardFile:
    """The prompts of a shard, in the order of their rows."""

    @staticmethod
    def to_bytes(prompts: Sequence[BatchPrompt]) -> bytes:
        """Returns the file; the same prompts give the same bytes."""
        return _lines(prompts)

    @staticmethod
    def parse(key: str, content: bytes) -> list[BatchPrompt]:
        """Reads the file; raises `DamagedObjectError` if it is not valid."""
        prompts = _parse(BatchPrompt, key, content)
        if not 1 <= len(prompts) <= MAX_IN_SHARD:
            raise DamagedObjectError(key, f"has {len(prompts)} prompts")
        return prompts


class PictureRecord(Strict):
    """A picture that was drawn for a prompt."""

    key: str
    """The name of its files in the tar, without an ending."""
    candidate: CandidateIndex
    score: float
    sha256: Sha256
    """SHA-256 of the picture's file."""
    size: Annotated[int, Field(ge=1)]
    """Bytes of the picture's file."""
    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]
    wording: str | None = Field(default=None, exclude_if=lambda given: given is None)
    """What was encoded for the candidate; None without `vary`."""


class PromptResult(Strict):
    """What became of a prompt: a row of the manifest."""

    row: Line
    id: str
    prompt: str
    effective_prompt: str | None = None
    """The prompt in the model's own words; None if the model reads the prompt as it is."""
    seed: Seed
    state: Literal["drawn", "failed", "invalid"]
    problem: str | None = None
    """Why it was not drawn."""
    tar: str | None = None
    """The name of the tar with its pictures, below the output; None if it has none."""
    model: str
    revision: str
    pictures: tuple[PictureRecord, ...] = ()
    """The pictures, best first."""

    @classmethod
    def of_pictures(
        cls,
        prompt: BatchPrompt,
        pictures: tuple[PictureRecord, ...],
        *,
        tar: str,
        model: str,
        revision: str,
        effective_prompt: str | None = None,
    ) -> "PromptResult":
        """Returns the result of a prompt that was drawn.

        Args:
            prompt: the prompt.
            pictures: its pictures, best first.
            tar: the name of the tar that they are in.
            model: name of the model.
            revision: revision of the model.
            effective_prompt: the prompt in the model's own words, if it differs.
        """
        return cls(
            row=prompt.row,
            id=prompt.id,
            prompt=prompt.prompt,
            effective_prompt=effective_prompt,
            seed=prompt.seed,
            state="drawn",
            tar=tar,
            model=model,
            revision=revision,
            pictures=pictures,
        )

    @classmethod
    def not_drawn(
        cls,
        prompt: BatchPrompt,
        problem: str,
        *,
        model: str,
        revision: str,
        effective_prompt: str | None = None,
    ) -> "PromptResult":
        """Returns the result of a prompt that was not drawn.

        Args:
            prompt: the prompt.
            problem: why it was not drawn; only the beginning of a long text is kept.
            model: name of the model.
            revision: revision of the model.
            effective_prompt: the prompt in the model's own words, if that is known and differs.
        """
        return cls(
            row=prompt.row,
            id=prompt.id,
            prompt=prompt.prompt,
            effective_prompt=effective_prompt,
            seed=prompt.seed,
            state="invalid" if prompt.invalid else "failed",
            problem=problem[:MAX_PROBLEM_LENGTH],
            model=model,
            revision=revision,
        )

    @staticmethod
    def to_bytes(results: Iterable["PromptResult"]) -> bytes:
        """Returns results as a file; the same results give the same bytes."""
        return _lines(results)

    @staticmethod
    def parse(key: str, content: bytes) -> "list[PromptResult]":
        """Reads a file of results; raises `DamagedObjectError` if it is not valid."""
        return _parse(PromptResult, key, content)


def seed_of_row(seed: int, row: int) -> int:
    """Returns the seed of a row that has none: it follows from the seed of the batch and the number of the row."""
    digest = hashlib.sha256(f"smalti batch {seed} {row}".encode()).digest()
    return int.from_bytes(digest[:8]) & MAX_SEED


def _lines(objects: Iterable[Strict]) -> bytes:
    return b"".join(each.model_dump_json(exclude_none=True).encode() + b"\n" for each in objects)


def _parse(kind: type[Row], key: str, content: bytes) -> list[Row]:
    try:
        return [kind.model_validate_json(line) for line in content.splitlines()]
    except ValidationError as error:
        raise DamagedObjectError(key, str(first_problem(error))) from None
