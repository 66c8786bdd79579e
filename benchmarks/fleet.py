"""Simulates a fleet of generators, from the measured costs of jobs (`benchmarks.cost`).

    python -m benchmarks.fleet                         the whole table; takes some minutes
    python -m benchmarks.fleet --write docs/scale.md   also writes all tables of the page
    python -m benchmarks.fleet --quick                 a small fleet for a few seconds, to check that it runs

It prints what a part of the system can serve, what a fleet needs, and what jobs of a simulated fleet wait for.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import simpy
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.measuring import format_seconds
from benchmarks.report import write_between
from benchmarks.scale.costs import Costs
from benchmarks.scale.pages import cost_tables, format_count, table
from benchmarks.scale.planning import (
    CANDIDATES,
    CHUNKS,
    H100,
    TARGET,
    cell_for,
    demand_of,
    jobs_per_second,
    one_of_each,
    planning_tables,
)
from benchmarks.scale.simulation import STATIONS, Demand, Fleet, Job, Layout
from benchmarks.scale.turns import FirstCome, TenantTurns, Waiting

TENANTS: Final = 100
"""Tenants whose jobs come at random times."""
TURN: Final = 16
"""Candidates of a tenant's turn."""
SEED: Final = 17
WAVES: Final = 5
BURST: Final = "burst"
PLACES: Final = ("costs", "arithmetic", "fleet")
"""Places in the page."""
BEGIN: Final = "<!-- {}: written by python -m benchmarks.fleet -->"
END: Final = "<!-- end of {} -->"

Happening = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large the simulated fleet is, and for how long it runs."""

    generators: int
    seconds: float
    burst: int
    """Jobs of one tenant at once."""

    @property
    def begin(self) -> float:
        """When it happens."""
        return self.seconds / 6


FULL: Final = Size(generators=1000, seconds=120, burst=10_000)
QUICK: Final = Size(generators=20, seconds=36, burst=200)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What happens to a fleet."""

    name: str
    happenings: Callable[[Fleet, Size], Sequence[Happening]] = lambda fleet, size: ()
    """Returns the processes of the simulation that make it happen."""
    turns: bool = True
    """Whether tenants take turns; otherwise the first come is the first served."""
    in_cells: bool = True
    """Whether there are cells; otherwise there is one of each part."""
    binds_to_newest: bool = True


def _rollout(fleet: Fleet, size: Size) -> Sequence[Happening]:
    return [fleet.roll_out(size.begin, WAVES)]


def _zone(fleet: Fleet, size: Size) -> Sequence[Happening]:
    return [fleet.lose_zone(size.begin, size.seconds / 2)]


def _burst(fleet: Fleet, size: Size) -> Sequence[Happening]:
    return [fleet.burst(size.begin, size.burst, CHUNKS)]


SCENARIOS: Final = (
    Scenario(name="steady, one of each part", in_cells=False),
    Scenario(name="steady"),
    Scenario(name="rollout, new jobs get the newest revision", happenings=_rollout),
    Scenario(name="rollout, new jobs are shared out", happenings=_rollout, binds_to_newest=False),
    Scenario(name="a zone is lost", happenings=_zone),
    Scenario(name="burst, first come first served", happenings=_burst, turns=False),
    Scenario(name="burst, turns", happenings=_burst),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was seen of a scenario."""

    scenario: Scenario
    fleet: Fleet
    seconds: float
    took: float
    """Seconds that the simulation took."""

    def waits(self, *, burst: bool) -> list[float]:
        """Returns the seconds from each job's arrival until a generator began it; those that wait are not done."""
        now = self.fleet.env.now
        return [
            (now if job.began is None else job.began) - job.arrived
            for job in self.fleet.jobs
            if (job.tenant == BURST) == burst
        ]

    @property
    def use(self) -> float:
        """The share of the time of all generators' places that was used."""
        layout = self.fleet.layout
        places = layout.cells * layout.generators * self.fleet.chip.places
        return sum(cell.busy for cell in self.fleet.cells) / (places * self.seconds)


def simulate(scenario: Scenario, size: Size, demand: Demand, *, seed: int = SEED) -> Outcome:
    """Runs a scenario at `TARGET` of what the generators can do."""
    layout = (cell_for(demand, H100, size.generators) if scenario.in_cells else one_of_each(H100, size.generators))
    layout = replace(layout, binds_to_newest=scenario.binds_to_newest)
    generators = layout.cells * layout.generators

    def waiting() -> Waiting[Job]:
        return TenantTurns(TURN, lambda job: CANDIDATES // CHUNKS) if scenario.turns else FirstCome()

    began = time.perf_counter()
    fleet = Fleet(layout, H100, demand, waiting=waiting, seed=seed)
    rate = TARGET * generators * jobs_per_second(H100)
    for process in (fleet.arrivals(rate, TENANTS, CHUNKS), *scenario.happenings(fleet, size)):
        fleet.env.process(process)
    fleet.run(size.seconds)
    return Outcome(scenario=scenario, fleet=fleet, seconds=size.seconds, took=time.perf_counter() - began)


def describe(outcome: Outcome) -> Mapping[str, str]:
    """Returns what is told of a scenario."""
    fleet, layout = outcome.fleet, outcome.fleet.layout
    lanes = [lane for cell in fleet.cells for lane in cell.lanes.values()]
    ended = [job.ended - job.arrived for job in fleet.jobs if job.ended is not None]
    told = {
        "generators": f"{layout.cells * layout.generators:,} in {layout.cells:,} cells",
        "jobs": f"{len(fleet.jobs):,}",
        "ended": f"{len(ended):,}",
        "refused": f"{fleet.refused:,}",
        "wait for a generator": percentiles(outcome.waits(burst=False)),
        "wait of the burst's jobs": percentiles(outcome.waits(burst=True)),
        "arrival to end": percentiles(ended),
        "use of the generators": f"{outcome.use:.0%}",
        "most chunks waiting in a cell's database": f"{max(lane.most_waiting for lane in lanes):,}",
        "most chunks in a cell's queue": f"{max(lane.most_queued for lane in lanes):,}",
        "chunks begun again": f"{sum(cell.lost for cell in fleet.cells):,}",
    }
    for name in STATIONS:
        stations = [cell.stations[name] for cell in fleet.cells]
        use = statistics.mean(station.use for station in stations)
        longest = format_seconds(max(station.longest for station in stations))
        told[f"use of the {name}, longest wait"] = f"{use:.0%}, {longest}"
    return told


def percentiles(seconds: Sequence[float]) -> str:
    """Returns the median, and what 95 % and 99 % are within."""
    if not seconds:
        return ""
    ordered = sorted(seconds)
    found = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.95, 0.99))
    return " / ".join(map(format_seconds, found))


def fleet_tables(outcomes: Sequence[Outcome]) -> list[str]:
    """Returns the lines, in Markdown, of all scenarios."""
    columns = {outcome.scenario.name: describe(outcome) for outcome in outcomes}
    return ["", *table("median / 95 % / 99 %", columns), ""]


def main() -> None:
    """Runs all scenarios, and prints or writes the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fleet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a small fleet, only to check that it runs")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write all tables into this page")
    options = parser.parse_args()
    costs = Costs.load()
    size = QUICK if options.quick else FULL
    outcomes = []
    for scenario in SCENARIOS:
        outcomes.append(simulate(scenario, size, demand_of(costs)))
        print(f"{scenario.name}: simulated in {format_seconds(outcomes[-1].took)}", flush=True)
    tables = dict(zip(PLACES, (cost_tables(costs), planning_tables(costs), fleet_tables(outcomes)), strict=True))
    for lines in tables.values():
        Console(width=200).print(Markdown("\n".join(lines)))
    if options.write:
        for name, lines in tables.items():
            write_between(options.write, lines, begin=BEGIN.format(name), end=END.format(name))


if __name__ == "__main__":
    main()
