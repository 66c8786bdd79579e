"""The settings of a training run: one TOML file, from which the run can be repeated."""

import tomllib
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from smalti.errors import InvalidInputError
from smalti.validation import Strict, first_problem

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]


class OptimizerSettings(Strict):
    """How the weights follow the gradient; see `smalti.training.loop.optimizers`."""

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: Rate = 1e-3
    """Of AdamW, at the top of the schedule."""
    matrix_learning_rate: Rate = 0.02
    """Of Muon, which moves the matrices when it is chosen; AdamW moves the rest."""
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    final_share: Share = 0.03
    """What is left of the learning rate at the last step; a cosine leads there."""
    beta1: Share = 0.9
    beta2: Share = 0.98
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    largest_gradient: Annotated[float, Field(gt=0)] = 1.0
    """A gradient whose norm over all weights is larger is scaled down to it."""


class RunSettings(Strict):
    """What every run has. Everything that changes the loss curve stands here, nothing of the machine does."""

    counted: ClassVar[str] = "tokens"
    """What the speed is told in."""
    trains: Literal["tokenizer", "generator", "ranker", "judge"]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    steps: Count
    """The length of the schedule; the run ends there."""
    batch_size: Count
    """Pictures in a step, over all devices and accumulated parts."""
    accumulate: Count = 1
    """In how many parts, one after the other, the gradient of a step is computed, to save memory."""
    optimizer: OptimizerSettings = OptimizerSettings()
    log_every: Count = 20
    evaluate_every: Count = 200
    save_every: Count = 200
    sheet_every: Count = 400
    held_out: Count = 512
    """Held-out pictures that an evaluation looks at."""

    @model_validator(mode="after")
    def _parts_are_equal(self) -> "RunSettings":
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate: {self.accumulate} does not divide batch_size, {self.batch_size}")
        return self


Settings = TypeVar("Settings", bound=RunSettings)


def read_settings(path: Path, kind: type[Settings]) -> Settings:
    """Reads the settings of a run from a TOML file.

    Raises:
        InvalidInputError: the file cannot be read, is of another trainer, has an unknown key or a wrong value.
    """
    try:
        fields = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInputError(str(path), f"cannot be read as TOML ({error})") from None
    wanted = kind.model_fields["trains"].default
    if fields.get("trains", wanted) != wanted:
        raise InvalidInputError(
            f"{path}: trains", f"{fields['trains']!r} is asked for; use `smalti train` with it"
        )
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        problem = first_problem(error)
        raise InvalidInputError(
            f"{path}: {problem.field}" if problem.field else str(path), problem.message
        ) from None
