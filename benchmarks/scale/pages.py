"""The tables of docs/scale.md."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Final

from benchmarks.scale.costs import ALONE, DELETED, JOB_SIZES, POSTGRES, SQLITE, TOGETHER, Costs, Run

PROCESSOR: Final = "processor:"
"""How the names of times begin."""
UNITS: Final = ("B", "kB", "MB", "GB", "TB")
MIN_SECONDS: Final = 5e-6
"""Less is not told of a time."""


def cost_tables(costs: Costs) -> list[str]:
    """Returns the lines, in Markdown, that tell what a job costs."""
    lines = []
    for way in (ALONE, TOGETHER, DELETED):
        columns = {
            f"{database}, {candidates}": _counts_of(costs.run(database, way, candidates))
            for database in (SQLITE, POSTGRES)
            for candidates in JOB_SIZES
        }
        lines += ["", *table(f"each job, {way}", columns)]
    idle = {database: _formatted(counts) for database, counts in costs.idle.items()}
    lines += ["", *table("each second, nothing to do", idle)]
    lines += ["", *table("each job, shipped model", {"SQLite, 16": _formatted(costs.model)})]
    lines += ["", *table("each stream of a job that waits", {"SQLite": _formatted(costs.stream)})]
    return [*lines, "", *(f"* {name}: {fact}" for name, fact in costs.facts.items()), ""]


def _counts_of(run: Run) -> Mapping[str, str]:
    # Without messages, what the broker did was to answer the measurement.
    skipped = () if run.median("broker: messages") else ("broker:",)
    return {
        name: format_spread(name, values)
        for name, values in run.counts.items()
        if not name.startswith(skipped)
    }


def _formatted(counts: Mapping[str, float]) -> Mapping[str, str]:
    return {name: format_value(name, value) for name, value in counts.items()}


def table(first: str, columns: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Returns the lines of a table in Markdown, with a row for each name that a column has and is not 0 everywhere."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    lines = [f"| {first} | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for name in names:
        cells = [column.get(name, "") for column in columns.values()]
        if set(cells) - {"", "0"}:
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def format_spread(name: str, values: Sequence[float]) -> str:
    """Returns the median, with the minimum and the maximum where they look different."""
    middle, low, high = (format_value(name, each(values)) for each in (statistics.median, min, max))
    return middle if low == high else f"{middle} ({low} to {high})"


def format_value(name: str, value: float) -> str:
    """Returns a count, a size with its unit, or a processor time in milliseconds."""
    if name.startswith(PROCESSOR):
        return f"{1000 * value:.3g} ms" if value >= MIN_SECONDS else "0"
    if "bytes" in name:
        power = max(power for power in range(len(UNITS)) if power == 0 or abs(value) >= 1000**power)
        return f"{format_count(value / 1000**power)} {UNITS[power]}" if abs(value) >= 1 else "0"
    return format_count(value)


def format_count(value: float) -> str:
    """Returns a number with three significant digits, and thousands apart."""
    shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "0" if abs(value) < 0.005 or shown in ("-0", "0") else shown
