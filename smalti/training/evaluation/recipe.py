"""How a run was trained, read back from its folder: for the model card."""

import json
import re
import tomllib
from pathlib import Path

from smalti.errors import InvalidInputError
from smalti.training.loop.run_folder import METRICS_FILE, SETTINGS_FILE
from smalti.validation import Strict

_SPEED = re.compile(r"train/(\w+)_per_second")


class Recipe(Strict):
    """What a run was, and what it took."""

    trains: str
    steps: int
    of: int
    """The length of the schedule."""
    pictures: int
    """That it has seen, the same ones counted again."""
    minutes: float
    """Of training alone, without evaluations, encoding and pauses."""
    settings: str
    """The settings file as it was given."""


def read_recipe(run: Path, tokens: int) -> Recipe:
    """Reads a run of any trainer.

    Args:
        run: its folder.
        tokens: of a picture; the speed of some trainers is logged in tokens.

    Raises:
        InvalidInputError: there is no run, or it has not logged anything yet.
    """
    try:
        text = (run / SETTINGS_FILE).read_text("utf-8")
        fields = tomllib.loads(text)
        records = [json.loads(line) for line in (run / METRICS_FILE).read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InvalidInputError("run", f"{run} is no run that can be read ({error})") from None
    seconds, before = 0.0, 0
    for record in records:
        for name, speed in record.items():
            if counted := _SPEED.fullmatch(name):
                work = fields["batch_size"] * (tokens if counted[1] == "tokens" else 1)
                seconds += (record["step"] - before) * work / speed
                before = record["step"]
    if not before:
        raise InvalidInputError("run", f"{run} has not been trained yet")
    return Recipe(
        trains=fields["trains"],
        steps=before,
        of=fields["steps"],
        pictures=before * fields["batch_size"],
        minutes=seconds / 60,
        settings=text,
    )
