"""The table of the programs in `docs/performance.md`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import table_lines, write_between
from benchmarks.tpu.estimate import CHIPS
from benchmarks.tpu.kernels import seconds
from benchmarks.tpu.rows import Row
from smalti.engines.generator.memory import DEVICE_GIB

BEGIN, END = "<!-- compiled: written by make tpu -->", "<!-- end of what is compiled -->"
COLUMNS = (
    *("program", "estimate, ms", "floor, ms", "share", "mean of a picture, ms", "memory, GiB of a chip"),
    "padding of the state",
    *("copied for a dispatch, MiB", "between chips: number; KiB", "compile, s", "pictures/s a chip"),
)
STEPS = 16
"""Tokens of a dispatch."""
TOKENS = 256


def milliseconds(row: Row, found: Mapping[str, Any], *, mean: bool = False) -> float:
    """Returns the estimate of a token of all slots, or of a call: cycles, or bytes over bandwidth if that is longer.

    A step's kernels are added to the rest, since both wait for the same memory.

    Args:
        row: the program.
        found: what the compiler says.
        mean: whether kernels read what is drawn on average, and not all positions.
    """
    clock, bandwidth = CHIPS[row.chip]
    if row.program != "step":
        cycles = found["entry_cycles"] + found["body_cycles"]
        return 1000 * max(cycles / clock, found["floor_bytes"] / bandwidth)
    cycles = found["body_cycles"] + found["entry_cycles"] / STEPS
    # Without kernels, the rest is everything.
    rest = found["floor_bytes"] - sum(each["count"] * each["bytes"] for each in found["kernels"].values())
    return 1000 * (
        max(cycles / clock, rest / bandwidth) + seconds(found["kernels"], clock, bandwidth, mean=mean)
    )


def cells(row: Row, found: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the cells of one row."""
    _, bandwidth = CHIPS[row.chip]
    taken, floor = milliseconds(row, found), 1000 * found["floor_bytes"] / bandwidth
    state, held = found["state_bytes"], found["memory_bytes"] / 2**30
    data, model = map(int, row.mesh.split("x"))
    rate = row.slots / (TOKENS * taken / 1000) / (data * model) if row.program == "step" else 0.0
    return (
        row.name,
        f"{taken:.3g}",
        f"{floor:.3g}" if floor else "",
        f"{floor / taken:.2f}" if floor and taken else "",
        f"{milliseconds(row, found, mean=True):.3g}" if row.program == "step" else "",
        f"{held:.2f} of {DEVICE_GIB[row.chip]:.0f}",
        f"{100 * (found['aliased_bytes'] / state - 1):.1f} %" if state else "",
        f"{found['copied'] / 2**20:.3g}",
        f"{found['collectives']}; {found['collective_bytes'] / 2**10:.0f}" if data * model > 1 else "",
        f"{found['compile_seconds']:.0f}",
        f"{rate:.3g}" if rate else "",
    )


def table(rows: Sequence[Row], results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the lines of the table of the rows that are compiled."""
    return table_lines(COLUMNS, (cells(row, results[row.name]) for row in rows if row.name in results))


def write(page: Path, rows: Sequence[Row], results: Mapping[str, Mapping[str, Any]]) -> None:
    """Puts the table between its marks on a page; raises `InvalidInputError` if there are none."""
    write_between(page, ["", *table(rows, results), ""], begin=BEGIN, end=END)
