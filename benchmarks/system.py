"""Measures the overhead of the system beyond its engines' compute, with real processes on this machine."""

import asyncio
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.acknowledging import measure_acknowledgements
from benchmarks.deployment import Deployment
from benchmarks.measuring import Times, format_seconds
from benchmarks.report import Row, at_most
from harness.collector import Collector, RecordedSpan
from harness.waiting import wait_until
from smalti.client import AsyncClient, Client, has_ended
from smalti.telemetry.tracing import COMPUTE_BEGINS, COMPUTE_ENDS
from smalti.testing.model import tiny_model
from smalti.up.servers import free_port
from smalti.v1.job_pb2 import JOB_STATE_SUCCEEDED, Job

PROMPT = "a blue cat on a yellow background"
GOAL_SECONDS = 0.06
CALLERS = 32
"""Number of concurrent jobs."""
EXPORT_MILLISECONDS = 1000
"""Interval between exports of spans, which take time from the jobs."""


@dataclass(frozen=True)
class Load:
    """The numbers of jobs that are measured."""

    jobs: int
    """Jobs one at a time."""
    warm_up: int
    """Jobs before these that do not count."""
    many: int
    """Concurrent jobs, and messages for measuring acknowledgements."""
    waiting: int
    """Jobs that wait while no stage runs."""


FULL = Load(40, 10, 150, 10_000)
QUICK = Load(3, 1, 8, 50)


def measure(load: Load) -> list[Row]:
    """Measures everything; takes a few minutes."""
    with tempfile.TemporaryDirectory(prefix="smalti-bench-") as name:
        folder = Path(name)
        model = tiny_model(folder / "model").path
        return [
            *_one_job(load, folder / "real", model),
            *_idle_engines(load, folder / "idle", model),
            *measure_acknowledgements(folder / "acknowledging", load.many),
            *_waiting(load, folder / "waiting", model),
        ]


def _one_job(load: Load, folder: Path, model: Path) -> Iterator[Row]:
    """Measures one job at a time with the tiny model, without the time of the engines."""
    with Collector() as collector:
        tracing = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": str(EXPORT_MILLISECONDS),
        }
        with Deployment(folder, model, settings=tracing) as system, Client(system.gateway) as client:
            for candidates in (4, 16):
                took: dict[str, float] = {}
                for number in range(load.warm_up + load.jobs):
                    job, seconds = run_job(client, number, candidates)
                    if number >= load.warm_up:
                        took[job] = seconds
                _wait_for_spans(collector, set(took), chunks=candidates // 4)
                computing = _computing(collector.spans)
                rest = Times(tuple(seconds - computing[job] for job, seconds in took.items()))
                whole = Times(tuple(took.values()))
                yield Row(
                    f"one job of {candidates} candidates, tiny model, without the engines' compute",
                    str(rest),
                    "",
                    f"of {format_seconds(whole.median)}",
                    at_most(rest.median, GOAL_SECONDS),
                )
                collector.clear()


def run_job(client: Client, number: int, candidates: int) -> tuple[str, float]:
    """Runs one job; returns its id, and the seconds from the request until the client knows that it has ended."""
    begin = time.perf_counter()
    job = client.create(PROMPT, seed=number, candidates=candidates, n=min(9, candidates))
    for version in client.watch(job.id, since_version=job.version):
        job = version
    seconds = time.perf_counter() - begin
    _check(job)
    return job.id, seconds


def _wait_for_spans(collector: Collector, jobs: set[str], *, chunks: int) -> None:
    """Waits for the spans of all work for the jobs: one encoding, and three stages for each chunk."""
    expected = len(jobs) * (1 + 3 * chunks)

    def complete() -> bool:
        processed = (span for span in collector.spans if span.name.startswith("process "))
        stages = [span for span in processed if span.name != "process events"]
        return sum(span.attributes["smalti.job"] in jobs for span in stages) >= expected

    wait_until(complete)


def _computing(spans: Sequence[RecordedSpan]) -> dict[str, float]:
    """Returns the seconds during which at least one engine worked for each job."""
    intervals: dict[str, list[tuple[float, float]]] = {}
    for span in spans:
        begins = [moment for name, moment in span.events if name == COMPUTE_BEGINS]
        ends = [moment for name, moment in span.events if name == COMPUTE_ENDS]
        if begins:
            intervals.setdefault(span.attributes["smalti.job"], []).extend(zip(begins, ends, strict=True))
    return {job: covered(found) for job, found in intervals.items()}


def covered(intervals: Sequence[tuple[float, float]]) -> float:
    """Returns the length of the union of intervals."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def _idle_engines(load: Load, folder: Path, model: Path) -> Iterator[Row]:
    """Measures the time of a job and the number of jobs per second with engines that do no work."""
    with Deployment(folder, model, idle=True) as system, Client(system.gateway) as client:
        for candidates in (4, 16):
            seconds = [run_job(client, number, candidates)[1] for number in range(load.warm_up + load.jobs)]
            times = Times(tuple(seconds[load.warm_up :]))
            yield Row(f"one job of {candidates} candidates, engines that do no work", str(times))
        for candidates in (4, 16):
            elapsed = asyncio.run(run_jobs(system.gateway, load.many, candidates))
            rate = f"{load.many / elapsed:.3g} jobs/s"
            yield Row(
                f"{load.many} jobs of {candidates} candidates, {CALLERS} at a time, engines that do no work",
                rate,
            )


async def run_jobs(gateway: str, jobs: int, candidates: int) -> float:
    """Runs jobs, `CALLERS` at a time; returns the seconds until all have ended."""
    permits = asyncio.Semaphore(CALLERS)
    async with AsyncClient(gateway) as client:

        async def run(number: int) -> None:
            async with permits:
                job = await client.create(PROMPT, seed=number, candidates=candidates, n=min(9, candidates))
                async for version in client.watch(job.id, since_version=job.version):
                    job = version
                _check(job)

        begin = time.perf_counter()
        await asyncio.gather(*(run(number) for number in range(jobs)))
        return time.perf_counter() - begin


def _waiting(load: Load, folder: Path, model: Path) -> Iterator[Row]:
    """Measures the memory that waiting jobs need."""
    port = free_port()
    settings = {"SMALTI_METRICS_PORT": str(port)}
    with Deployment(folder, model, stages=(), settings=settings) as system:
        asyncio.run(_create_jobs(system.gateway, CALLERS))
        before = _memory(system, port)
        elapsed = asyncio.run(_create_jobs(system.gateway, load.waiting - CALLERS))
        after = _memory(system, port)
        database = sum(each.stat().st_size for each in folder.glob("gateway.sqlite3*"))
    work = f"{load.waiting} waiting jobs of 16 candidates"
    yield Row(f"{work}: memory of the gateway", *_grown(before["gateway"], after["gateway"]))
    yield Row(f"{work}: memory of the broker", *_grown(before["broker"], after["broker"]))
    yield Row(f"{work}: size of the database", _mebibytes(database))
    yield Row(f"{work}: accepted", f"{(load.waiting - CALLERS) / elapsed:.3g} jobs/s")


async def _create_jobs(gateway: str, jobs: int) -> float:
    permits = asyncio.Semaphore(CALLERS)
    async with AsyncClient(gateway) as client:

        async def create(number: int) -> None:
            async with permits:
                await client.create(PROMPT, seed=number, candidates=16, n=9)

        begin = time.perf_counter()
        await asyncio.gather(*(create(number) for number in range(jobs)))
        return time.perf_counter() - begin


def _memory(system: Deployment, port: int) -> dict[str, float]:
    """Returns the memory of the gateway and of the broker, in bytes."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
        gateway = next(each for each in families if each.name == "process_resident_memory_bytes")
    with redis.Redis.from_url(system.valkey.url) as broker:
        information: Any = broker.info("memory")
    return {"gateway": gateway.samples[0].value, "broker": float(information["used_memory_rss"])}


def _grown(before: float, after: float) -> tuple[str, str, str]:
    return _mebibytes(after), "", f"{(after - before) / 2**20:+.3g} MiB"


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:.3g} MiB"


def _check(job: Job) -> None:
    if not has_ended(job) or job.state != JOB_STATE_SUCCEEDED:
        raise RuntimeError(f"job {job.id} did not succeed: {job}")
