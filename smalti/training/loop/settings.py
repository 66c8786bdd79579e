"""Settings of a training run: one TOML file, from which the run can be repeated."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import Field, model_validator

from smalti.errors import InvalidInputError
from smalti.training.checked_files import check_fields, load_toml
from smalti.validation import Strict

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Network = Literal["tokenizer", "generator", "ranker", "judge", "refiner"]
"""A network that can be trained, by the name of its command."""


class OptimizerSettings(Strict):
    """Settings of the optimizer; `smalti.training.loop.optimizers` makes it."""

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: Rate = 1e-3
    """Peak learning rate of AdamW."""
    matrix_learning_rate: Rate = 0.02
    """Peak learning rate of Muon. With "muon", Muon updates the matrices and AdamW the other weights."""
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    final_share: Share = 0.03
    """Learning rate at the last step, as a share of the peak; the rate falls to it along a cosine."""
    beta1: Share = 0.9
    beta2: Share = 0.98
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    largest_gradient: Annotated[float, Field(gt=0)] = 1.0
    """A gradient with a larger norm, taken over all weights, is scaled down to this norm."""


class RunSettings(Strict):
    """Settings that every run has: everything that changes the loss curve, and nothing about the machine."""

    counted: ClassVar[str] = "tokens"
    """Unit in which the speed is logged."""
    trains: Network
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    steps: Count
    """Length of the schedule; the run ends there."""
    batch_size: Count
    """Pictures in a step, over all devices and accumulated parts."""
    accumulate: Count = 1
    """Number of parts in which the gradient of a step is computed, one after the other, to save memory."""
    optimizer: OptimizerSettings = OptimizerSettings()
    log_every: Count = 20
    evaluate_every: Count = 200
    save_every: Count = 200
    sheet_every: Count = 400
    held_out: Count = 512
    """Number of held-out pictures in an evaluation."""

    @model_validator(mode="after")
    def _parts_are_equal(self) -> "RunSettings":
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate: must divide batch_size, {self.batch_size}, not {self.accumulate}")
        return self


Settings = TypeVar("Settings", bound=RunSettings)


def load_settings(path: Path, kind: type[Settings]) -> Settings:
    """Loads the settings of a run from a TOML file.

    Raises:
        InvalidInputError: the file cannot be read, is for another trainer, has an unknown key or a wrong value.
    """
    fields = load_toml(path)
    wanted = kind.model_fields["trains"].default
    if fields.get("trains", wanted) != wanted:
        raise InvalidInputError(f"{path}: trains", f"must be {wanted!r} here, not {fields['trains']!r}")
    return check_fields(path, kind, fields)
