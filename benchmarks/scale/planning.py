"""The arithmetic: what one of each part can serve, and what a number of accelerators needs."""

import math
from collections.abc import Mapping
from typing import Final

from benchmarks.scale.costs import CANDIDATES_IN_CHUNK, POSTGRES, TOGETHER, Costs
from benchmarks.scale.pages import format_count, format_value, table
from benchmarks.scale.parts import STATIONS, Chip, Demand, Layout

CANDIDATES: Final = 16
"""Candidates of a job here, as in the model's default."""
CHUNKS: Final = CANDIDATES // CANDIDATES_IN_CHUNK
TOKEN_SECONDS: Final = 1.96e-3
START_SECONDS: Final = 19.0
"""Of mini with 16 slots in bfloat16 on an H100: time of a token, and of a start (docs/performance.md)."""
H100: Final = Chip(slots=16, seconds=256 * TOKEN_SECONDS, start=START_SECONDS)
TARGET: Final = 0.7
"""Share of their cores that parts may use, and of their slots that generators should; beyond it, queues grow."""
FLEETS: Final = (1, 100, 10_000)
"""Numbers of accelerators in the table."""
PROCESSES: Final[Mapping[str, str]] = {
    "gateway": "gateway",
    "database": "PostgreSQL",
    "broker": "Valkey",
    "store": "SeaweedFS",
}
"""The measured process of each station."""
CORES: Final[Mapping[str, int]] = {"gateway": 1, "database": 16, "broker": 1, "store": 16}
"""Cores that one of them can use: the gateway is one Python process, Valkey has one thread for commands, and the other
two have a machine, which is assumed to have 16 cores of the kind that was measured."""
OPEN_JOBS: Final = 10_000
STORED_JOBS: Final = 1_000_000
"""Defaults of `SMALTI_GATEWAY_OPEN_JOBS` and `SMALTI_GATEWAY_STORED_JOBS`."""
WINDOW: Final = 128
"""Default of `SMALTI_GATEWAY_WINDOW`."""
DAY: Final = 86_400
RATES: Final = (
    "database: statements",
    "database: commits",
    "database: rows written",
    "database: bytes of the log",
    "broker: messages",
    "broker: commands",
    "broker: bytes received",
    "store: requests",
    "store: PUT",
    "store: GET",
)
"""Counts of a job that are told for a second."""
REAL_RATES: Final = ("store: bytes received", "store: bytes sent")
"""Those of the shipped model, whose objects have real sizes."""


def demand_of(costs: Costs) -> Demand:
    """Returns the processor time of jobs that run together, with PostgreSQL."""
    split = {station: costs.split(f"processor: {name}") for station, name in PROCESSES.items()}
    return Demand(
        job={station: seconds[0] for station, seconds in split.items()},
        chunk={station: seconds[1] for station, seconds in split.items()},
    )


def jobs_per_second(chip: Chip) -> float:
    """Returns the jobs that a generator whose slots are always full does in a second."""
    return chip.candidates / CANDIDATES


def cell_for(demand: Demand, chip: Chip, accelerators: int) -> Layout:
    """Returns cells in which no part has more to do than `TARGET` while the generators are at `TARGET` too.

    A cell has one broker, which has one core, so that core decides how many generators a cell has.
    """
    rate = TARGET * jobs_per_second(chip)
    generators = max(1, min(accelerators, math.floor(TARGET / (rate * demand.of("broker", CHUNKS)))))
    servers = {
        station: max(1, math.ceil(generators * rate * demand.of(station, CHUNKS) / TARGET))
        for station in STATIONS
    }
    return Layout(
        cells=math.ceil(accelerators / generators),
        generators=generators,
        servers=servers,
        window=2 * chip.slots * generators,
    )


def one_of_each(chip: Chip, accelerators: int) -> Layout:
    """Returns a single cell with one of each part, with the cores that it can use."""
    return Layout(cells=1, generators=accelerators, servers=CORES, window=2 * chip.slots * accelerators)


def planning_tables(costs: Costs) -> list[str]:
    """Returns the lines, in Markdown, of the arithmetic."""
    demand, rate = demand_of(costs), jobs_per_second(H100)
    parts: dict[str, dict[str, str]] = {
        "processor time of a job": {},
        "cores of one": {},
        "jobs a second of one": {},
        "accelerators of one": {},
    }
    for station in sorted(STATIONS, key=lambda each: CORES[each] / demand.of(each, CHUNKS)):
        seconds = demand.of(station, CHUNKS)
        name = station if station == PROCESSES[station] else f"{station} ({PROCESSES[station]})"
        most = CORES[station] / seconds
        cells = (
            f"{1000 * seconds:.3g} ms",
            str(CORES[station]),
            format_count(most),
            format_count(most / rate),
        )
        for column, cell in zip(parts, cells, strict=True):
            parts[column][name] = cell
    lines = ["", "What one of each serves, the first to break first:", "", *table("part", parts), ""]
    run = costs.run(POSTGRES, TOGETHER, CANDIDATES)
    needs: dict[str, dict[str, str]] = {}
    for accelerators in FLEETS:
        jobs = accelerators * rate
        need = {"jobs a second": format_count(jobs)}
        need |= {f"cores: {station}": format_count(jobs * demand.of(station, CHUNKS)) for station in STATIONS}
        need |= {name: format_value(name, jobs * run.median(name)) for name in RATES}
        need |= {
            f"{name}, shipped model": format_value(name, jobs * costs.model.get(name, 0.0))
            for name in REAL_RATES
        }
        need |= {
            "jobs a day": format_count(jobs * DAY),
            f"hours until {STORED_JOBS:,} jobs are stored": format_count(STORED_JOBS / jobs / 3600),
            f"seconds of work that {OPEN_JOBS:,} open jobs are": format_count(OPEN_JOBS / jobs),
            f"candidates in the queues, which are {WINDOW} by default": f"{2 * H100.slots * accelerators:,}",
        }
        layout = cell_for(demand, H100, accelerators)
        need["cells"] = f"{layout.cells:,}"
        need["generators of a cell"] = str(layout.generators)
        need |= {f"cores of a cell: {station}": str(layout.servers[station]) for station in STATIONS}
        needs[f"{accelerators:,} accelerators" if accelerators > 1 else "1 accelerator"] = need
    return [*lines, "What a fleet needs when every slot is full:", "", *table("in a second", needs), ""]
