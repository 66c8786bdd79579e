"""What hand-written kernels are counted as. The compiler schedules them, but has no estimate of their cycles.

A kernel takes the longer of two times: that of its bundles of instructions, of which a TPU runs one in a cycle, and
that of the bytes that it reads and writes over the bandwidth. The bundles are counted in the compiler's final schedule:
of a loop over blocks of positions, with parts that run once for a slot.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_CYCLES = 1830
"""What the compiler counts for its own smallest operation."""
_LINE = re.compile(r"^ *(?:0x[0-9a-f]+|0) +(?P<label>[A-Z]{2})? *: *(?P<depth>>*) *\{(?P<rest>.*)")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Bundles of a kernel."""

    once: int
    slot: int
    """Those that run once for a slot."""
    block: int
    """Those that run for each block of positions of each slot."""

    def cycles(self, slots: int, blocks: float) -> int:
        """Returns the cycles for some slots with a number of blocks each."""
        return round(self.once + slots * (self.slot + blocks * self.block))


def dumping(folder: Path) -> dict[str, str]:
    """Returns the environment in which the compiler writes its schedules into a folder."""
    options = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    return {"LIBTPU_INIT_ARGS": " ".join(filter(None, (os.environ.get("LIBTPU_INIT_ARGS"), options)))}


def schedules(folder: Path, names: Sequence[str]) -> dict[str, Schedule]:
    """Returns the schedules of the kernels with these names, from what the compiler wrote into a folder."""
    found: dict[str, Schedule] = {}
    for name in names:
        paths = [
            path
            for path in sorted(folder.glob(f"*-{name}.*-final_bundles.txt"))
            if "schedule-analysis" not in path.name
        ]
        if paths:
            found[name] = parse(paths[-1].read_text("utf-8"))
    return found


def parse(text: str) -> Schedule:
    """Returns the schedule of a kernel, from the compiler's final bundles.

    The last loop is that over the blocks. In it, what a branch skips (to the next `PF`) runs once for a slot. Another
    loop runs once for each slot.
    """
    lines = [found for line in text.splitlines() if (found := _LINE.match(line))]
    starts = [index for index, line in enumerate(lines) if line["label"] == "LB"]
    loops: list[int] = []
    skipped = 0
    for start, following in zip(starts, [*starts[1:], len(lines)], strict=True):
        # Bundles of a loop are marked, but for empty ones.
        end = max(index for index in range(start, following) if lines[index]["depth"]) + 1
        branch, skipped = None, 0
        for index in range(start, end):
            if branch is not None and lines[index]["label"] == "PF":
                skipped, branch = skipped + index - branch - 1, None
            elif "sbr.rel" in lines[index]["rest"] and branch is None:
                branch = index
        loops.append(end - start)
    if not loops:
        return Schedule(once=len(lines), slot=0, block=0)
    return Schedule(once=len(lines) - sum(loops), slot=sum(loops[:-1]) + skipped, block=loops[-1] - skipped)


def counted(schedule: Schedule, slots: int, blocks: int, size: int, drawn: int) -> dict[str, Any]:
    """Returns cycles and bytes of a kernel with all positions, and with those of a picture on average.

    Args:
        schedule: its bundles.
        slots: slots on a chip.
        blocks: blocks of positions of a slot.
        size: bytes with all positions.
        drawn: those of them that are only read as far as positions are drawn.
    """
    # A slot has reached each number of blocks for an equal part of its picture.
    mean = (blocks + 1) / 2
    return {
        "cycles": schedule.cycles(slots, blocks),
        "bytes": size,
        "mean_cycles": schedule.cycles(slots, mean),
        "mean_bytes": round(size - drawn * (1 - mean / blocks)),
    }


def seconds(kernels: Mapping[str, Mapping[str, Any]], clock: float, bandwidth: float, *, mean: bool) -> float:
    """Returns how long the kernels of a token take."""
    prefix = "mean_" if mean else ""
    return sum(
        each["count"]
        * (max(each[f"{prefix}bytes"] / bandwidth, each[f"{prefix}cycles"] / clock) + START_CYCLES / clock)
        for each in kernels.values()
    )
