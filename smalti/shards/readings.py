"""What the stages know of each prompt of a shard, beside what they compute; every file between stages has it."""

from collections.abc import Callable, Sequence
from typing import Final

from pydantic import Field, TypeAdapter, ValidationError

from smalti.batches import BatchPrompt
from smalti.errors import DamagedObjectError, InvalidInputError, NotSupportedError, RequestFailedError
from smalti.validation import Strict, first_problem

OnPrompt = Callable[[BatchPrompt], None]
"""Called before a stage works on a prompt; what it raises ends the stage."""
PROMPT_ERRORS: Final = (InvalidInputError, NotSupportedError, RequestFailedError)
"""Errors that concern one prompt alone; the shard goes on without it."""


class Reading(Strict):
    """How the model reads a prompt, and whether it can be drawn."""

    effective_prompt: str | None = Field(default=None, exclude_if=lambda given: given is None)
    """The prompt in words that the model knows; None if these are the prompt's own."""
    wordings: tuple[str, ...] = Field(default=(), exclude_if=lambda given: not given)
    """With `vary`, what is encoded for each candidate."""
    problem: str | None = Field(default=None, exclude_if=lambda given: given is None)
    """Why the prompt is not drawn; None for all others."""

    def failed(self, problem: str) -> "Reading":
        """Returns the reading of a prompt over which a stage has failed."""
        return self.model_copy(update={"problem": problem})

    def prompt(self, prompt: BatchPrompt) -> str:
        """Returns the effective prompt, which may be the prompt itself."""
        return self.effective_prompt or prompt.prompt

    def wording(self, candidate: int) -> str | None:
        """Returns what was encoded for a candidate; None without `vary`."""
        return self.wordings[candidate] if self.wordings else None

    def texts(self, prompt: BatchPrompt) -> tuple[str, ...]:
        """Returns what is encoded: a text for each candidate, or one for all; nothing if it cannot be drawn."""
        return () if self.problem is not None else self.wordings or (self.prompt(prompt),)


def readings_bytes(readings: Sequence[Reading]) -> bytes:
    """Returns readings as JSON."""
    return _READINGS.dump_json(tuple(readings))


def parse_readings(key: str, content: bytes, prompts: Sequence[BatchPrompt]) -> tuple[Reading, ...]:
    """Reads the readings of a shard's prompts; raises `DamagedObjectError` if they are not valid."""
    try:
        readings = _READINGS.validate_json(content, strict=True)
    except ValidationError as error:
        raise DamagedObjectError(key, str(first_problem(error))) from None
    if len(readings) != len(prompts):
        raise DamagedObjectError(key, f"is of {len(readings)} prompts; the shard has {len(prompts)}")
    for prompt, reading in zip(prompts, readings, strict=True):
        check_reading(key, reading, prompt)
    return readings


def check_reading(key: str, reading: Reading, prompt: BatchPrompt) -> None:
    """Raises `DamagedObjectError` unless a reading fits a prompt."""
    if reading.problem is None and len(reading.wordings) != (prompt.candidates if prompt.vary else 0):
        raise DamagedObjectError(key, f"has {len(reading.wordings)} wordings for row {prompt.row}")


_READINGS: Final = TypeAdapter(tuple[Reading, ...])
