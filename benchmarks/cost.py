"""Counts what a job costs: the database, the broker, the store, and the processor time of each process.

    python -m benchmarks.cost                          measures and prints; takes a quarter of an hour
    python -m benchmarks.cost --save                   also keeps the counts, for the page and the simulation
    python -m benchmarks.cost --quick                  few jobs, to check that it runs

Counts do not depend on a quiet machine; processor time does, so it has a spread. The engines do no work, since their
compute is not a cost of the system; the generator sends as many progress events as one that takes half a second. Sizes
of objects and messages are those of the shipped model, in a run with its real engines.
"""

import argparse
import asyncio
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psutil
from rich.console import Console
from rich.markdown import Markdown

import smalti
from benchmarks.deployment import Deployment
from benchmarks.idle import PROGRESS
from benchmarks.measuring import Bystanders, describe_machine
from benchmarks.scale.costs import (
    ALONE,
    COSTS,
    DELETED,
    JOB_SIZES,
    POSTGRES,
    SQLITE,
    TOGETHER,
    Costs,
    Counts,
    Run,
)
from benchmarks.scale.counting import CountedStore, Counters
from benchmarks.scale.pages import cost_tables
from benchmarks.system import run_job, run_jobs
from harness.paths import ROOT
from harness.servers import PostgresServer, free_port
from smalti.client import AsyncClient, Client
from smalti.testing.model import tiny_model

SHIPPED: Final = ROOT / "smalti" / "assets" / "pictograms"
SETTLING_SECONDS: Final = 1.5
"""Time without a commit or a request to the store after which the work for ended jobs is done."""
PROGRESS_EVENTS: Final = 2
"""Progress events of a chunk: a generator leaves 0.2 s between two, and mini takes 0.5 s on an H100."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured."""

    jobs: int
    """Jobs in a repetition."""
    repeats: int
    idle_seconds: float
    """Time for which an idle system is counted."""
    real_jobs: int
    """Jobs of the shipped model."""
    streams: int
    """Clients that watch a job which waits."""


FULL: Final = Plan(jobs=25, repeats=3, idle_seconds=20, real_jobs=3, streams=900)
QUICK: Final = Plan(jobs=2, repeats=1, idle_seconds=2, real_jobs=1, streams=10)
PARTS: Final = ("jobs", "streams")


class Measurement:
    """Counts jobs of a running system."""

    def __init__(self, system: Deployment, counters: Counters, plan: Plan) -> None:
        """Counts the idle system first: what it does anyway is not a cost of jobs."""
        self._system = system
        self._counters = counters
        self._plan = plan
        self._jobs: list[str] = []
        before, began = self._settle()
        time.sleep(plan.idle_seconds)
        ended = time.monotonic()
        self.idle = _difference(counters.read(), before, ended - began)
        """Counts of the idle system in a second."""

    def runs(self, database: str, candidates: int) -> Iterator[Run]:
        """Yields the runs of jobs with a number of candidates, after some that do not count."""
        ways: dict[str, Callable[[], None]] = {
            ALONE: lambda: self._run_alone(candidates),
            TOGETHER: lambda: self._run_together(candidates),
            DELETED: self._delete,
        }
        self._run_together(candidates)
        counted: dict[str, list[Counts]] = {way: [] for way in ways}
        for _ in range(self._plan.repeats):
            for way, work in ways.items():
                counted[way].append(self.count(work, self._plan.jobs))
        for way, each in counted.items():
            names = dict.fromkeys(name for counts in each for name in counts)
            yield Run(
                database=database,
                way=way,
                candidates=candidates,
                jobs=self._plan.jobs,
                counts={name: [counts.get(name, 0.0) for counts in each] for name in names},
            )

    def count(self, work: Callable[[], None], jobs: int) -> Counts:
        """Returns the counts of the work for one job, with what follows after its end."""
        before, began = self._settle()
        work()
        after, ended = self._settle()
        counts = _difference(after, before, 1)
        return {
            name: (count - self.idle.get(name, 0.0) * (ended - began)) / jobs
            for name, count in counts.items()
        }

    def _run_alone(self, candidates: int) -> None:
        with Client(self._system.gateway) as client:
            self._jobs = [run_job(client, number, candidates)[0] for number in range(self._plan.jobs)]

    def _run_together(self, candidates: int) -> None:
        asyncio.run(run_jobs(self._system.gateway, self._plan.jobs, candidates))

    def _delete(self) -> None:
        with Client(self._system.gateway) as client:
            for job in self._jobs:
                client.delete(job)

    def _settle(self) -> tuple[Counts, float]:
        """Waits until the work is done; returns the counts and the time."""
        activity, since = self._counters.activity(), time.monotonic()
        while time.monotonic() - since < SETTLING_SECONDS:
            time.sleep(0.25)
            if (now := self._counters.activity()) != activity:
                activity, since = now, time.monotonic()
        return self._counters.read(), time.monotonic()


def measure_jobs(plan: Plan) -> Costs:
    """Counts jobs with both databases, and jobs of the shipped model."""
    bystanders = Bystanders()
    runs: list[Run] = []
    idle: dict[str, Counts] = {}
    with temporary_folder() as folder:
        model = tiny_model(folder / "model").path
        for database in (SQLITE, POSTGRES):
            with deployment(folder / database, model, database, idle=True) as (system, counters):
                measurement = Measurement(system, counters, plan)
                idle[database] = measurement.idle
                for candidates in JOB_SIZES:
                    runs += measurement.runs(database, candidates)
        with deployment(folder / "real", SHIPPED, SQLITE, idle=False) as (system, counters):
            measurement = Measurement(system, counters, plan)

            def draw() -> None:
                with Client(system.gateway) as client:
                    for number in range(plan.real_jobs):
                        run_job(client, number, JOB_SIZES[-1])

            draw()
            real = measurement.count(draw, plan.real_jobs)
    facts = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": describe_machine()["processor"],
        "versions": f"Python {platform.python_version()}, smalti {smalti.__version__}",
        "jobs": f"{plan.repeats} times {plan.jobs} of each kind",
        "other processes": f"used {bystanders.share():.0%} of the cores during the runs",
    }
    return Costs(facts=facts, runs=runs, idle=idle, model=real, stream={})


def measure_streams(plan: Plan) -> Counts:
    """Returns what a stream costs while its job waits: memory of the gateway, and its processor time in a second."""
    with temporary_folder() as folder:
        model = tiny_model(folder / "model").path
        limits = {"SMALTI_RPC_PEER_STREAMS": str(plan.streams)}
        with Deployment(folder, model, stages=(), settings=limits) as system:
            gateway = psutil.Process(system.services["gateway"].pids[-1])
            return asyncio.run(_watch(system.gateway, gateway, plan))


async def _watch(address: str, gateway: psutil.Process, plan: Plan) -> Counts:
    async with AsyncClient(address) as client:
        job = await client.create("a blue cat")

        async def watch(seen: asyncio.Semaphore) -> None:
            async for _ in client.watch(job.id):
                seen.release()

        async def used() -> tuple[float, float]:
            before = gateway.cpu_times()
            await asyncio.sleep(plan.idle_seconds)
            after = gateway.cpu_times()
            seconds = after.user + after.system - before.user - before.system
            return gateway.memory_info().rss, seconds / plan.idle_seconds

        memory, seconds = await used()
        seen = asyncio.Semaphore(0)
        streams = [asyncio.create_task(watch(seen)) for _ in range(plan.streams)]
        for _ in streams:
            await seen.acquire()
        more_memory, more_seconds = await used()
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
    return {
        "gateway: bytes of memory": (more_memory - memory) / plan.streams,
        "processor: gateway, each second": (more_seconds - seconds) / plan.streams,
    }


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Makes a folder, which PostgreSQL's user may enter, for the block."""
    with tempfile.TemporaryDirectory(prefix="smalti-cost-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def deployment(
    folder: Path, model: Path, database: str, *, idle: bool
) -> Iterator[tuple[Deployment, Counters]]:
    """Runs a system whose gateway and store are counted while the block runs."""
    postgres = PostgresServer(folder / "postgres") if database == POSTGRES else None
    port = free_port()
    settings = {PROGRESS: str(PROGRESS_EVENTS)}
    if postgres is not None:
        postgres.start()
        settings["SMALTI_GATEWAY_DATABASE"] = postgres.url
    try:
        with Deployment(
            folder,
            model,
            idle=idle,
            settings=settings,
            commands={"gateway": ("benchmarks.scale.counted_gateway", str(port))},
            store=CountedStore(folder / "store"),
        ) as system:
            yield system, Counters(system, port, postgres)
    finally:
        if postgres is not None:
            postgres.close()


def _difference(after: Counts, before: Counts, seconds: float) -> Counts:
    return {name: (value - before.get(name, 0.0)) / seconds for name, value in after.items()}


def main() -> None:
    """Measures, and prints tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="few jobs, only to check that it runs")
    parser.add_argument("--save", action="store_true", help=f"keep the counts in {COSTS.relative_to(ROOT)}")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    # What is not measured stays as it was.
    costs = measure_jobs(plan) if "jobs" in options.parts else Costs.load()
    if "streams" in options.parts:
        costs = replace(costs, stream=measure_streams(plan))
    Console(width=160).print(Markdown("\n".join(cost_tables(costs))))
    if options.save:
        costs.save(COSTS)


if __name__ == "__main__":
    main()
