"""Reads what the TPU compiler writes about a program: cycles, copies, and what travels between chips.

The compiler writes `estimated_cycles` beside each operation of the scheduled program. A loop's body is a computation of
its own, whose sum is that of one turn. Asynchronous copies are left out of these estimates, so bytes over bandwidth is
a second bound. A kernel written by hand has no estimate; `benchmarks.tpu.kernels` counts it.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_HEAD = re.compile(r"^(ENTRY )?(%?[\w.\-]+) ?\(.*\{\s*$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SHAPE = re.compile(r"\b(pred|[suf]\d+|bf16)\[([\d,]*)\]")
_NEAR = re.compile(r"\(?\w+\[[\d,]*\]\{[^}]*S\(1\)")
_OPERATION = re.compile(r" = (.*?) ([a-z][a-z\-]*)\(")
_KERNEL = re.compile(r'%(\w+?)(?:\.\d+)? = .*"tpu_custom_call".*"bytes_accessed":"(\d+)"')
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_BITS = {"pred": 8, "bf16": 16}
MIN_COPY_BYTES = 2**16
"""Smaller copies are those of positions and sampling parameters."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Sums over the entry of a program, which runs once, and over the body of its longest loop."""

    entry_cycles: int
    body_cycles: int
    """Of one turn; 0 without a loop."""
    copied: int
    """Bytes of the copies in the entry, from memory to memory."""
    collectives: int
    """Number of operations between chips in the body, or in the entry without a loop."""
    collective_bytes: int
    kernels: Mapping[str, tuple[int, int]]
    """Number of each kernel in the body, and the bytes that one reads and writes."""


def read(text: str) -> Estimate:
    """Returns the estimate of a scheduled program, `compiled.as_text()`."""
    computations = dict(_computations(text))
    cycles = {name: sum(map(_cycles, lines)) for name, lines in computations.items()}
    entry = next(name for name in computations if name.startswith("ENTRY"))
    bodies = {name: count for name, count in cycles.items() if name != entry and count}
    loop = max(bodies, key=bodies.__getitem__) if bodies else entry
    travelling = [size for kind, size in _operations(computations[loop]) if _is_collective(kind)]
    copies = [size for kind, size in _operations(computations[entry]) if kind in ("copy", "copy-start")]
    return Estimate(
        entry_cycles=cycles[entry],
        body_cycles=bodies.get(loop, 0),
        copied=sum(size for size in copies if size >= MIN_COPY_BYTES),
        collectives=len(travelling),
        collective_bytes=sum(travelling),
        kernels=_kernels(computations[loop]),
    )


def _kernels(lines: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Returns how often each kernel is called, and the bytes that it says it reads and writes."""
    sizes: dict[str, list[int]] = {}
    for line in lines:
        if found := _KERNEL.search(line):
            sizes.setdefault(found[1], []).append(int(found[2]))
    return {name: (len(found), max(found)) for name, found in sizes.items()}


def _computations(text: str) -> Iterator[tuple[str, Sequence[str]]]:
    """Yields the lines of each computation."""
    lines: list[str] = []
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            lines = []
            yield (head[1] or "") + head[2], lines
        else:
            lines.append(line)


def _cycles(line: str) -> int:
    found = _CYCLES.search(line)
    return int(found[1]) if found else 0


def _operations(lines: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yields the kind and the bytes of the result of each operation; a copy into the chip's own memory has none."""
    for line in lines:
        found = _OPERATION.search(line)
        if found:
            # Only where the result lies counts: what comes out of the chip's own memory is written, too.
            near = _NEAR.match(found[1]) and not _is_collective(found[2])
            yield found[2], 0 if near else _first_bytes(found[1])


def _first_bytes(shape: str) -> int:
    """Returns the bytes of the first array of a shape, unpadded."""
    found = _SHAPE.search(shape)
    if found is None:
        return 0
    bits = _BITS.get(found[1]) or int(found[1][1:])
    return math.prod(int(size) for size in found[2].split(",") if size) * bits // 8


def _is_collective(kind: str) -> bool:
    return kind.removesuffix("-start") in _COLLECTIVES


CHIPS: Mapping[str, tuple[float, float]] = {
    "v5e": (1.5e9, 819e9),
    "v6e": (1.5e9, 1640e9),
    "v5p": (1.75e9, 2765e9),
}
"""Clock in cycles a second, and bandwidth in bytes a second. The clocks of v6e and v5p are assumed."""
