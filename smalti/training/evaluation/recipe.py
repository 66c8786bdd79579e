"""The recipe of a run for the model card, read from its folder."""

import json
import re
import tomllib
from pathlib import Path

from smalti.errors import InvalidInputError
from smalti.training.loop.run_folder import METRICS_FILE, SETTINGS_FILE
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
        text = (run / SETTINGS_FILE).read_text("utf-8")
        fields = tomllib.loads(text)
        records = [json.loads(line) for line in (run / METRICS_FILE).read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InvalidInputError("run", f"{run} must be the folder of a run ({error})") from None
    seconds, before = 0.0, 0
    for record in records:
        for name, speed in record.items():
            if counted := _SPEED.fullmatch(name):
                work = fields["batch_size"] * (tokens if counted[1] == "tokens" else 1)
                seconds += (record["step"] - before) * work / speed
                before = record["step"]
    if not before:
        raise InvalidInputError("run", f"{run} has not been trained yet; train it first")
    return Recipe(
        trains=fields["trains"],
        steps=before,
        of=fields["steps"],
        pictures=before * fields["batch_size"],
        minutes=seconds / 60,
        settings=text,
    )
