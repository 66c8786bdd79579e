"""Reports the table on the terminal, and in a page of the documentation between two markers."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import format_seconds
from smalti.errors import InvalidInputError
from smalti.files import write_atomically

COLUMNS = ("work", "Smalti", "min-dalle", "result", "goal")
BEGIN, END = "<!-- measured: written by make bench -->", "<!-- end of what is measured -->"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    work: str
    ours: str
    peers: str = ""
    result: str = ""
    goal: str = ""


def compared(value: float, goal: float, unit: str = "") -> tuple[str, str]:
    """Returns the texts of a result and of its goal, which says whether it was reached."""
    return f"{value:.2f}{unit}", f"at least {goal:g}{unit}: {'reached' if value >= goal else 'missed'}"


def at_most(seconds: float, goal: float) -> str:
    """Returns the text of a goal for a time, which says whether it was reached."""
    return f"at most {format_seconds(goal)}: {'reached' if seconds <= goal else 'missed'}"


def show(rows: Sequence[Row], facts: Mapping[str, str]) -> None:
    """Prints the table, and below it the facts on which it depends."""
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*astuple(row))
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    for name, fact in facts.items():
        console.print(f"{name}: {fact}", markup=False, highlight=False)


def write(path: Path, rows: Sequence[Row], facts: Mapping[str, str]) -> None:
    """Writes the table into a page, in place of the last one.

    Raises:
        InvalidInputError: the page has no markers.
    """
    listed = [f"* {name}: {fact}" for name, fact in facts.items()]
    write_between(path, ["", *table_lines(COLUMNS, map(astuple, rows)), "", *listed, ""])


def table_lines(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns a table as lines of Markdown."""
    return [
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def write_between(path: Path, lines: Sequence[str], *, begin: str = BEGIN, end: str = END) -> None:
    """Writes lines into a page, in place of those between two markers.

    Raises:
        InvalidInputError: the page does not have the markers.
    """
    page = path.read_text(encoding="utf-8")
    place = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not place.search(page):
        raise InvalidInputError("--write", f"{path} must have the lines {begin!r} and {end!r}")
    text = "\n".join((begin, *lines, end))
    write_atomically(path, place.sub(lambda _: text, page))
