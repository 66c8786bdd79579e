"""The recipe of a run for the model card, read from its folder."""

import re
from pathlib import Path

from smalti.errors import InvalidInputError
from smalti.foreign_text import load_text, parse_toml
from smalti.training.loop.log import METRICS_FILE, load_records
from smalti.training.loop.run_folder import SETTINGS_FILE
from smalti.validation import Strict

_SPEED = re.compile(r"train/(\w+)_per_second")


class Recipe(Strict):
    """Summary of a run for the model card."""

    trains: str
    steps: int
    of: int
    """Length of the schedule."""
    pictures: int
    """Number of pictures seen, counting repetitions."""
    minutes: float
    """Time of training alone, without evaluations, encoding and pauses."""
    settings: str
    """Text of the settings file."""


def load_recipe(run: Path, tokens: int) -> Recipe:
    """Loads the recipe of a run of any trainer.

    Args:
        run: folder of the run.
        tokens: number of tokens of a picture; some trainers log their speed in tokens.

    Raises:
        InvalidInputError: the folder holds no run, or the run has logged nothing yet.
    """
    try:
        text = load_text(run / SETTINGS_FILE)
        fields = parse_toml(text, SETTINGS_FILE)
        records, _ = load_records(run / METRICS_FILE)
        batch_size, steps, trains = int(fields["batch_size"]), int(fields["steps"]), str(fields["trains"])
    except (InvalidInputError, OSError, ValueError, TypeError, KeyError) as error:
        raise InvalidInputError("run", f"{run} must be the folder of a run ({error})") from None
    seconds, before = 0.0, 0
    for record in records:
        for name, speed in record.items():
            counted = _SPEED.fullmatch(name)
            if counted and isinstance(speed, int | float) and speed > 0:
                work = batch_size * (tokens if counted[1] == "tokens" else 1)
                seconds += (record["step"] - before) * work / speed
                before = record["step"]
    if not before:
        raise InvalidInputError("run", f"{run} has not been trained yet; train it first")
    return Recipe(
        trains=trains,
        steps=before,
        of=steps,
        pictures=before * batch_size,
        minutes=seconds / 60,
        settings=text,
    )
