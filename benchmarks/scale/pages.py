"""The tables of docs/scale.md."""

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.scale.costs import ALONE, DELETED, JOB_SIZES, POSTGRES, SQLITE, TOGETHER, Costs


def cost_tables(costs: Costs) -> list[str]:
    """Returns the lines, in Markdown, that tell what a job costs."""
    lines = []
    for way in (ALONE, TOGETHER, DELETED):
        columns = {
            f"{database}, {candidates} candidates": {
                name: format_spread(values)
                for name, values in costs.run(database, way, candidates).counts.items()
            }
            for database in (SQLITE, POSTGRES)
            for candidates in JOB_SIZES
        }
        lines += ["", f"Jobs {way}:", "", *table("for each job", columns), ""]
    idle = {
        database: {name: format_count(value) for name, value in counts.items()}
        for database, counts in costs.idle.items()
    }
    lines += ["Nothing to do:", "", *table("in a second", idle), ""]
    real = {"16 candidates": _formatted(costs.model)}
    lines += ["The shipped model:", "", *table("for each job", real), ""]
    lines += [f"* {name}: {fact}" for name, fact in costs.facts.items()]
    return lines


def table(first: str, columns: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Returns the lines of a table in Markdown, with a row for each name that a column has and is not 0 everywhere."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    lines = [f"| {first} | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for name in names:
        cells = [column.get(name, "") for column in columns.values()]
        if set(cells) - {"", "0"}:
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def format_spread(values: Sequence[float]) -> str:
    """Returns the median, with the minimum and the maximum where they look different."""
    middle, low, high = (format_count(each(values)) for each in (statistics.median, min, max))
    return middle if low == high else f"{middle} ({low} to {high})"


def _formatted(counts: Mapping[str, float]) -> Mapping[str, str]:
    return {name: format_count(value) for name, value in counts.items()}


def format_count(value: float) -> str:
    """Returns a number with three significant digits, and thousands apart."""
    shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "0" if abs(value) < 0.005 or shown in ("-0", "0") else shown
