"""Simulates a fleet of generators, from the measured costs of jobs (`benchmarks.cost`).

    python -m benchmarks.fleet                         the whole table; takes some minutes
    python -m benchmarks.fleet --write docs/scale.md   also writes all tables of the page
    python -m benchmarks.fleet --quick                 a small fleet for a few seconds, to check that it runs

It prints what a part of the system can serve, what a fleet needs, and what jobs of a simulated fleet wait for.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markdown import Markdown

from benchmarks.measuring import format_seconds
from benchmarks.report import write_between
from benchmarks.scale.costs import CANDIDATES_IN_CHUNK, Costs
from benchmarks.scale.pages import cost_tables, table
from benchmarks.scale.parts import STATIONS, Demand, Happening, Job
from benchmarks.scale.planning import (
    CHUNKS,
    H100,
    TARGET,
    cell_for,
    demand_of,
    jobs_per_second,
    one_of_each,
    planning_tables,
)
from benchmarks.scale.simulation import Fleet
from benchmarks.scale.turns import FirstCome, TenantTurns, Waiting

TENANTS: Final = 100
"""Tenants whose jobs come at random times."""
TURN: Final = 16
"""Candidates of a tenant's turn."""
SEED: Final = 17
WAVES: Final = 4
BURST: Final = "burst"
PLACES: Final = ("costs", "arithmetic", "fleet")
"""Places in the page."""
BEGIN: Final = "<!-- {}: written by python -m benchmarks.fleet -->"
END: Final = "<!-- end of {} -->"

INSIDE: Final = "most chunks waiting in a cell"
"""The first of what is told that no job sees."""


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
        return self.seconds / 9


FULL: Final = Size(generators=1000, seconds=90, burst=10_000)
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
    share: float = 1.0
    """Share of the time for which it runs."""


def _turns() -> Waiting[Job]:
    return TenantTurns(TURN, lambda job: CANDIDATES_IN_CHUNK)


ORDERS: Final[Mapping[bool, Callable[[], Waiting[Job]]]] = {False: FirstCome, True: _turns}
"""The orders in which chunks are sent: by whether tenants take turns."""


def _rollout(fleet: Fleet, size: Size) -> Sequence[Happening]:
    return [fleet.roll_out(size.begin, WAVES)]


def _zone(fleet: Fleet, size: Size) -> Sequence[Happening]:
    return [fleet.lose_zone(size.begin, 3 * size.begin)]


def _burst(fleet: Fleet, size: Size) -> Sequence[Happening]:
    return [fleet.burst(size.begin, size.burst, CHUNKS)]


SCENARIOS: Final = (
    Scenario(name="steady, one of each part", in_cells=False, share=0.25),
    Scenario(name="steady", share=0.25),
    Scenario(name="rollout, new jobs get the newest revision", happenings=_rollout),
    Scenario(name="rollout, new jobs are shared out", happenings=_rollout, binds_to_newest=False),
    Scenario(name="a zone is lost", happenings=_zone, share=0.7),
    Scenario(name="burst, first come first served", happenings=_burst, turns=False, share=0.5),
    Scenario(name="burst, turns", happenings=_burst, share=0.5),
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
    layout = (
        cell_for(demand, H100, size.generators) if scenario.in_cells else one_of_each(H100, size.generators)
    )
    layout = replace(layout, binds_to_newest=scenario.binds_to_newest)
    generators = layout.cells * layout.generators
    began = time.perf_counter()
    fleet = Fleet(layout, H100, demand, waiting=ORDERS[scenario.turns], seed=seed)
    rate = TARGET * generators * jobs_per_second(H100)
    for process in (fleet.arrivals(rate, TENANTS, CHUNKS), *scenario.happenings(fleet, size)):
        fleet.env.process(process)
    seconds = scenario.share * size.seconds
    fleet.run(seconds)
    return Outcome(scenario=scenario, fleet=fleet, seconds=seconds, took=time.perf_counter() - began)


SPANS: Final[Mapping[str, Callable[[Sequence[Job]], Sequence[tuple[float | None, float | None]]]]] = {
    "from acceptance until it is sent": lambda jobs: [(job.accepted, job.sent) for job in jobs],
    "from arrival until a generator begins": lambda jobs: [(job.arrived, job.began) for job in jobs],
    "from arrival until it ends": lambda jobs: [(job.arrived, job.ended) for job in jobs],
}
"""The spans of a job that are told."""


def single_job_tables(demand: Demand, jobs: int) -> list[str]:
    """Returns the lines, in Markdown, that tell what single jobs of a tenant wait behind many of another.

    Args:
        demand: the costs of jobs.
        jobs: jobs of the other tenant, which come at once. A minute later the single ones begin to come, one each
            second, as long as the others are there.
    """
    layout = replace(cell_for(demand, H100, FULL.generators), cells=1, open_jobs=2 * jobs)
    rate = layout.generators * jobs_per_second(H100)
    begin, end = min(60.0, 0.3 * jobs / rate), 0.8 * jobs / rate
    told = {}
    for turns, name in ((False, "first come, first served"), (True, f"turns of {TURN} candidates")):
        fleet = Fleet(layout, H100, demand, waiting=ORDERS[turns], seed=SEED)
        for process in (fleet.burst(0, jobs, CHUNKS), fleet.single_jobs(begin, 1.0, CHUNKS)):
            fleet.env.process(process)
        fleet.run(end)
        singles = [job for job in fleet.jobs if job.tenant == "single"]
        fleet.run(3 * end)
        told[name] = {
            title: percentiles([after - before for before, after in times(singles) if after and before])
            for title, times in SPANS.items()
        }
    turn = f"a turn of {TURN} candidates, in a cell of {layout.generators} generators"
    names = list(SPANS)
    columns = {name: {order: cells[name] for order, cells in told.items()} for name in names}
    columns[names[0]] |= {turn: format_seconds(TURN / (layout.generators * H100.candidates))}
    return ["", *table(f"single jobs behind {jobs:,} of another tenant", columns), ""]


def describe(outcome: Outcome) -> Mapping[str, str]:
    """Returns what is told of a scenario."""
    fleet, layout = outcome.fleet, outcome.fleet.layout
    lanes = [lane for cell in fleet.cells for lane in cell.lanes.values()]
    ended = [job.ended - job.arrived for job in fleet.jobs if job.ended is not None]
    told = {
        "generators": f"{layout.cells * layout.generators:,} in {layout.cells:,} cell{'s' * (layout.cells > 1)}",
        "jobs": f"{len(fleet.jobs):,}",
        "ended": f"{len(ended):,}",
        "refused": f"{fleet.refused:,}",
        "wait for a generator": percentiles(outcome.waits(burst=False)),
        "wait of the burst's jobs": percentiles(outcome.waits(burst=True)),
        "arrival to end": percentiles(ended),
        "use of the generators": f"{outcome.use:.0%}",
        INSIDE: f"{max(lane.most_waiting for lane in lanes):,}",
        "most in its queue": f"{max(lane.most_queued for lane in lanes):,}",
        "begun again": f"{sum(cell.lost for cell in fleet.cells):,}",
    }
    for name in STATIONS:
        stations = [cell.stations[name] for cell in fleet.cells]
        use = statistics.mean(station.use for station in stations)
        longest = format_seconds(max(station.longest for station in stations))
        told[f"{name}: use, longest wait"] = f"{use:.0%}, {longest}"
    return told


def percentiles(seconds: Sequence[float]) -> str:
    """Returns the median, and what 95 % and 99 % are within."""
    if not seconds:
        return ""
    ordered = sorted(seconds)
    found = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.95, 0.99))
    return " / ".join(map(format_seconds, found))


def fleet_tables(told: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Returns the lines, in Markdown, of all scenarios: what jobs see, then what happens inside."""
    names = list(next(iter(told.values())))
    inside = names.index(INSIDE)
    lines = []
    for group in (names[:inside], names[inside:]):
        columns = {name: {scenario: cells[name] for scenario, cells in told.items()} for name in group}
        lines += ["", *table("scenario", columns)]
    return [*lines, ""]


def run(number: int, size: Size) -> Mapping[str, str]:
    """Simulates a scenario in a process of its own; returns what is told of it."""
    gc.disable()  # It would look at every job that there was, again and again; there are few cycles.
    outcome = simulate(SCENARIOS[number], size, demand_of(Costs.load()))
    print(f"{outcome.scenario.name}: simulated in {format_seconds(outcome.took)}", flush=True)
    return describe(outcome)


def main() -> None:
    """Runs all scenarios, and prints or writes the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fleet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a small fleet, only to check that it runs")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write all tables into this page")
    parser.add_argument("--processes", type=int, default=2, help="scenarios that are simulated at a time")
    options = parser.parse_args()
    costs = Costs.load()
    size = QUICK if options.quick else FULL
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        found = pool.map(run, range(len(SCENARIOS)), repeat(size))
        told = {scenario.name: cells for scenario, cells in zip(SCENARIOS, found, strict=True)}
    simulated = [*fleet_tables(told), *single_job_tables(demand_of(costs), size.burst)]
    tables = dict(zip(PLACES, (cost_tables(costs), planning_tables(costs), simulated), strict=True))
    for lines in tables.values():
        Console(width=200).print(Markdown("\n".join(lines)))
    if options.write:
        for name, lines in tables.items():
            write_between(options.write, lines, begin=BEGIN.format(name), end=END.format(name))


if __name__ == "__main__":
    main()
