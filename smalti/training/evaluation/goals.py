"""The goals of the shipped model, and the figures of this and of an earlier evaluation beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smalti.errors import InvalidInputError
from smalti.foreign_text import parse_json


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure of an evaluation, and what it should reach."""

    name: str
    path: str
    """Keys of the figure in `quality.json`, separated by dots."""
    target: float
    """Goal, in the unit."""
    scale: float = 1
    """Factor from the figure to the unit."""
    unit: str = ""
    digits: int = 1
    at_most: bool = False
    """Whether smaller is better."""

    def reached(self, value: float) -> bool:
        """Returns whether a value, in the unit, reaches the goal."""
        return value <= self.target if self.at_most else value >= self.target

    def find(self, figures: Mapping[str, Any]) -> float | None:
        """Returns the value in the unit; None if the evaluation does not have it."""
        value: Any = figures
        for key in self.path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return self.scale * value if isinstance(value, int | float) else None

    def text(self, value: float | None) -> str:
        """Formats a value; a dash for a figure that was not measured."""
        return "–" if value is None else f"{value:.{self.digits}f}{self.unit}"


def _right(kind: str, name: str, target: float, aspect: str = "everything") -> Goal:
    path = f"kinds.{kind}.shares.best.{aspect}.value"
    return Goal(name=f"right: {name}", path=path, target=target, scale=100, unit=" %")


GOALS: Sequence[Goal] = (
    _right("natural", "a thing in its own colours", 98),
    _right("seen", "combinations seen in training", 96),
    _right("held_out_colour", "held-out colour", 90),
    _right("held_out_background", "held-out background", 90),
    _right("pairs", "two things", 85),
    _right("counts", "number of things, one to four", 85, "arrangement"),
    _right("relations", "relation of two things", 85, "arrangement"),
    Goal(
        name="variety among the best pictures of a prompt",
        path="appearance.variety.value",
        target=0.8,
        digits=2,
    ),
    Goal(name="different candidates of a prompt", path="appearance.distinct.value", target=15.9),
    Goal(
        name="sharpness, as a share of that of real pictures",
        path="appearance.sharpness.share",
        target=85,
        scale=100,
        unit=" %",
    ),
    Goal(
        name="wobble in flat areas",
        path="appearance.wobble.generated.value",
        target=1,
        digits=2,
        at_most=True,
    ),
    Goal(
        name="Fréchet distance to real pictures",
        path="appearance.frechet.generated",
        target=90,
        at_most=True,
    ),
    Goal(
        name="things that the judge recognises in real pictures through the tokens",
        path="judge.tokens.thing",
        target=96,
        scale=100,
        unit=" %",
    ),
    Goal(name="PSNR of the image tokenizer", path="reconstruction.psnr", target=28, unit=" dB"),
    Goal(name="size of the model", path="size", target=24, scale=2**-20, unit=" MiB", at_most=True),
)
"""Shares are of the best pictures."""


def load_earlier(path: Path) -> Mapping[str, Any]:
    """Loads the `quality.json` of an earlier evaluation, which may lack figures that are measured now.

    Raises:
        InvalidInputError: the file cannot be read, or does not say which model it measures.
    """
    try:
        figures = parse_json(path.read_bytes(), "before")
    except OSError as error:
        raise InvalidInputError("before", f"{path} cannot be read ({error.strerror})") from None
    except InvalidInputError:
        figures = None
    if not isinstance(figures, Mapping) or not {"model", "revision", "date"} <= set(figures):
        raise InvalidInputError("before", f"{path} must be a quality.json of `smalti evaluate`")
    return figures


def goals_table(figures: Mapping[str, Any], earlier: Mapping[str, Any] | None) -> list[str]:
    """Returns the lines of a Markdown table: each goal, the figure, and the earlier figure if there is one."""
    before = [] if earlier is None else ["before"]
    titles = ["figure", "goal", *before, "now", "reached"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for goal in GOALS:
        value = goal.find(figures)
        cells = [goal.name, f"{'at most' if goal.at_most else 'at least'} {goal.target:g}{goal.unit}"]
        cells += [] if earlier is None else [goal.text(goal.find(earlier))]
        cells += [goal.text(value), "–" if value is None else "yes" if goal.reached(value) else "no"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
