"""Reports the phases on the terminal, and in a page of the documentation between two markers."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from benchmarks.report import table_lines
from faults.deployed.trial import PhaseResult, Say
from faults.report import remarks, write_marked

COLUMNS: Final = (
    "phase",
    "what happens",
    "accepted",
    "succeeded",
    "failed",
    "lost",
    "wrong",
    "unexpected",
    "seconds",
    "verdict",
)


def cells(result: PhaseResult) -> tuple[str, ...]:
    """Returns the cells of a phase."""
    tally = result.tally
    return (
        result.phase.name,
        result.phase.what,
        str(tally.accepted),
        *(str(tally.states[name]) for name in ("succeeded", "failed", "lost")),
        str(len(tally.wrong)),
        str(len(tally.unexpected)),
        f"{result.seconds:.0f}",
        "holds" if result.passed else "FAILS",
    )


def show(results: Sequence[PhaseResult]) -> None:
    """Prints the results."""
    console = Console(width=None if Console().is_terminal else 200, highlight=False)
    table = Table(*COLUMNS)
    for result in results:
        table.add_row(*cells(result), style=None if result.passed else "bold red")
    console.print(table)


def write(
    path: Path, name: str, maker: str, results: Sequence[PhaseResult], facts: Mapping[str, str]
) -> None:
    """Writes the results into a page, in place of the last ones.

    Args:
        path: the page.
        name: the name in the markers of the page.
        maker: the command in the first marker.
        results: the results of the phases.
        facts: what they depend on.

    Raises:
        InvalidInputError: the page has no markers with this name.
    """
    listed = [f"* {line}" for line in said(results)] + [f"* {key}: {fact}" for key, fact in facts.items()]
    write_marked(path, name, maker, [*table_lines(COLUMNS, map(cells, results)), "", *listed])


def said(results: Sequence[PhaseResult]) -> list[str]:
    """Returns the lines below the table."""
    return [
        line for each in results for line in remarks(each.phase.name, each.problems, each.notes, each.tally)
    ]


def tell(
    results: Sequence[PhaseResult],
    say: Say,
    path: Path | None,
    name: str,
    maker: str,
    facts: Mapping[str, str],
) -> None:
    """Prints what was seen, also if what is left could not be taken away, and writes it into a page if one is given.

    Args:
        results: the results of the phases so far; without any, nothing is told.
        say: called with each line below the table.
        path: the page.
        name: the name in the markers of the page.
        maker: the command in the first marker.
        facts: what the results depend on.
    """
    if not results:
        return
    show(results)
    for line in said(results):
        say(line)
    if path:
        write(path, name, maker, results, facts)
    sys.stdout.flush()
