"""Reports the results on the terminal, and in a page of the documentation between two markers."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import describe_machine
from benchmarks.report import table_lines, write_between
from faults.matrix import Result
from faults.tally import Tally

COLUMNS = (
    *("row", "fault", "accepted", "refused", "succeeded", "failed", "cancelled", "expired"),
    *("lost", "twice", "unexpected", "wrong", "seconds", "verdict"),
)

MAX_NAMED = 10
"""Unexpected or wrong objects that are listed; the others are counted."""


def facts(broker: str, database: str, gateways: int) -> dict[str, str]:
    """Returns the facts on which a result depends."""
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **describe_machine(),
        "broker and database": f"{broker}, {database}; store: SeaweedFS",
        **({"gateways": str(gateways)} if gateways > 1 else {}),
    }


def cells(result: Result) -> tuple[str, ...]:
    """Returns the cells of a row."""
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


def remarks(name: str, problems: Sequence[str], notes: Sequence[str], tally: Tally) -> list[str]:
    """Returns the lines below the table for a row: problems, notes, and reasons of failures.

    Args:
        name: what each line begins with.
        problems: expectations that were not met.
        notes: observations.
        tally: the numbers.
    """
    said = [*problems]
    for kind, found in (("unexpected", tally.unexpected), ("wrong", tally.wrong)):
        said += [f"{kind}: {each}" for each in found[:MAX_NAMED]]
        said += [f"{kind}: and {len(found) - MAX_NAMED} more"] * (len(found) > MAX_NAMED)
    said += notes
    said += [f"{count} failed: {reason}" for reason, count in tally.reasons.items()]
    return [f"{name}: {text}" for text in said]


def all_remarks(results: Sequence[Result]) -> list[str]:
    """Returns the lines below the table for all rows."""
    return [
        line
        for each in results
        for line in remarks(f"row {each.row.name}", each.problems, each.notes, each.tally)
    ]


def show(results: Sequence[Result], known: Mapping[str, str]) -> None:
    """Prints the results."""
    console = Console(width=None if Console().is_terminal else 200, highlight=False)
    table = Table(*COLUMNS)
    for result in results:
        table.add_row(*cells(result), style=None if result.passed else "bold red")
    console.print(table)
    for line in all_remarks(results):
        console.print(line, markup=False)
    for name, fact in known.items():
        console.print(f"{name}: {fact}", markup=False)
    held = sum(result.passed for result in results)
    console.print(f"{held} of {len(results)} rows hold")


def write(path: Path, name: str, results: Sequence[Result], known: Mapping[str, str]) -> None:
    """Writes the results into a page, in place of the last ones.

    Args:
        path: the page.
        name: the name in the markers of the page.
        results: the results of the rows.
        known: the facts on which they depend.

    Raises:
        InvalidInputError: the page has no markers with this name.
    """
    listed = [f"* {line}" for line in all_remarks(results)]
    listed += [f"* {name}: {fact}" for name, fact in known.items()]
    write_marked(path, name, "make faults", [*table_lines(COLUMNS, map(cells, results)), "", *listed])


def write_marked(path: Path, name: str, maker: str, lines: Sequence[str]) -> None:
    """Writes lines into a page between two markers, in place of the last ones.

    Args:
        path: the page.
        name: the name in the markers.
        maker: the command in the first marker.
        lines: what to write.

    Raises:
        InvalidInputError: the page has no markers with this name.
    """
    begin, end = f"<!-- {name}: written by {maker} -->", f"<!-- end of {name} -->"
    write_between(path, ["", *lines, ""], begin=begin, end=end)
