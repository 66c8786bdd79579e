"""The account of a run: on the terminal, and in a page of the documentation between two marks."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import describe_machine
from faults.matrix import Result
from smalti.errors import InvalidInputError
from smalti.files import write_atomically

COLUMNS = (
    *("row", "fault", "accepted", "refused", "succeeded", "failed", "cancelled", "expired"),
    *("lost", "twice", "unexpected", "wrong", "seconds", "verdict"),
)

MAX_NAMED = 10
"""Of the objects that are unexpected or wrong."""


def facts(broker: str, database: str) -> dict[str, str]:
    """Returns what a result depends on."""
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **describe_machine(),
        "broker and database": f"{broker}, {database}; store: SeaweedFS",
    }


def cells(result: Result) -> tuple[str, ...]:
    """Returns what stands in the columns of a row."""
    states = result.tally.states
    return (
        result.row.name,
        result.row.fault,
        str(result.tally.accepted),
        *(str(states[name]) for name in ("refused", "succeeded", "failed", "cancelled", "expired", "lost")),
        str(result.tally.twice),
        str(len(result.tally.unexpected)),
        str(len(result.tally.wrong)),
        f"{result.seconds:.0f}",
        "holds" if result.passed else "FAILS",
    )


def remarks(results: Sequence[Result]) -> list[str]:
    """Returns a line for everything that is to be said beside the numbers."""
    lines = []
    for result in results:
        said = [*result.problems]
        for kind, found in (("unexpected", result.tally.unexpected), ("wrong", result.tally.wrong)):
            said += [f"{kind}: {each}" for each in found[:MAX_NAMED]]
            said += [f"{kind}: and {len(found) - MAX_NAMED} more"] * (len(found) > MAX_NAMED)
        said += result.notes
        said += [f"{count} failed: {reason}" for reason, count in result.tally.reasons.items()]
        lines += [f"row {result.row.name}: {text}" for text in said]
    return lines


def show(results: Sequence[Result], known: Mapping[str, str]) -> None:
    """Prints the account."""
    console = Console(width=None if Console().is_terminal else 200, highlight=False)
    table = Table(*COLUMNS)
    for result in results:
        table.add_row(*cells(result), style=None if result.passed else "bold red")
    console.print(table)
    for line in remarks(results):
        console.print(line, markup=False)
    for name, fact in known.items():
        console.print(f"{name}: {fact}", markup=False)
    held = sum(result.passed for result in results)
    console.print(f"{held} of {len(results)} rows hold")


def write(path: Path, name: str, results: Sequence[Result], known: Mapping[str, str]) -> None:
    """Puts the account into a page, in the place of the one that is there.

    Args:
        path: the page.
        name: of its place in the page.
        results: what became of the rows.
        known: what it depends on.

    Raises:
        InvalidInputError: the page has no place of that name.
    """
    begin, end = f"<!-- {name}: written by make faults -->", f"<!-- end of {name} -->"
    page = path.read_text(encoding="utf-8")
    place = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    if not place.search(page):
        raise InvalidInputError("--write", f"{path} has no lines {begin!r} and {end!r}")
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells(result)) + " |" for result in results]
    listed = [f"* {line}" for line in remarks(results)] + [
        f"* {name}: {fact}" for name, fact in known.items()
    ]
    text = "\n".join((begin, "", *lines, "", *listed, "", end))
    write_atomically(path, place.sub(lambda _: text, page).encode())
