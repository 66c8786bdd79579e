"""What rows report: checks and times, as JSON between processes and as tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Check:
    """Something that must hold."""

    check: str
    passed: bool | None
    """None if it is only reported."""
    detail: str


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The highest rates that the device reaches."""

    limit: str
    """The type that was computed in."""
    operations: float
    """Operations per second in a large matrix product."""
    bandwidth: float
    """Bytes per second when a large array is read."""
    device: str


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The time of one unit of work, a token of all slots or a picture."""

    work: str
    peer: bool
    """Whether torch was measured, not Smalti."""
    dtype: str
    milliseconds: float
    """Median over the repetitions."""
    lowest: float
    highest: float
    pictures_a_second: float
    operations: float = 0.0
    """That one unit needs at least."""
    size: float = 0.0
    """Bytes that one unit must read at least."""
    memory: int = 0
    """Bytes on the device, weights and state."""
    peak: int = 0
    start: float = 0.0
    """Seconds for making parameters and compiling."""


KINDS = {"check": Check, "limit": Limit, "work": Timing}


def parse(fields: Mapping[str, Any]) -> Check | Limit | Timing:
    """Returns what a row has printed; the first field names its kind."""
    made: Check | Limit | Timing = KINDS[next(iter(fields))](**fields)
    return made


COLUMNS = (
    "work",
    "ms",
    "pictures/s",
    "floor, ms",
    "share of the limit",
    "torch, ms: eager; graphs",
    "memory, GiB: used; peak",
    "start, s",
)


def tables(found: Sequence[Check | Limit | Timing], errors: Mapping[str, str]) -> str:
    """Returns the tables for `docs/performance.md`."""
    limits = {each.limit: each for each in found if isinstance(each, Limit)}
    lines = [f"* device: {each.device}" for each in list(limits.values())[:1]]
    lines += [
        f"* limits, {name}: {each.operations / 1e12:.4g} TFLOP/s, {each.bandwidth / 1e9:.4g} GB/s"
        for name, each in limits.items()
    ]
    timings = [each for each in found if isinstance(each, Timing)]
    peers: dict[str, list[Timing]] = {}
    for each in timings:
        if each.peer:
            peers.setdefault(each.work, []).append(each)
    rows = [_row(each, limits.get(each.dtype), peers.pop(each.work, [])) for each in timings if not each.peer]
    rows += [(work, "", "", "", "", _shown(group), "", "") for work, group in peers.items()]
    if rows:
        lines += ["", _line(COLUMNS), "|" + "---|" * len(COLUMNS), *map(_line, rows)]
    checks = [each for each in found if isinstance(each, Check)]
    if checks:
        verdict = {True: "yes", False: "NO", None: "reported"}
        lines += ["", _line(("check", "holds", "detail")), "|---|---|---|"]
        lines += [_line((each.check, verdict[each.passed], each.detail)) for each in checks]
    lines += [f"* {name}: {error}" for name, error in errors.items()]
    return "\n".join(lines)


def _row(each: Timing, limit: Limit | None, peers: Sequence[Timing]) -> tuple[str, ...]:
    floor = share = ""
    if limit and (each.operations or each.size):
        least = 1000 * max(each.operations / limit.operations, each.size / limit.bandwidth)
        floor, share = f"{least:.3g}", f"{least / each.milliseconds:.2f}"
    return (
        f"{each.work}, {each.dtype}",
        f"{each.milliseconds:.3g} ({each.lowest:.3g} to {each.highest:.3g})",
        f"{each.pictures_a_second:.3g}",
        floor,
        share,
        _shown(peers),
        f"{each.memory / 2**30:.2f}; {each.peak / 2**30:.2f}" if each.peak else "",
        f"{each.start:.1f}",
    )


def _shown(peers: Sequence[Timing]) -> str:
    return "; ".join(f"{peer.milliseconds:.3g}" for peer in peers)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
