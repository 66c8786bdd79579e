"""Measures the web service under load: event streams that stay open, and prompts that are refused.

The web service and the gateway are processes of their own, and so are the crowd of clients and the played generator.
This process only asks for `/healthz`, so that its times have nothing of theirs.
"""

import asyncio
import http.client
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import numpy as np
import psutil
from pydantic import SecretStr

from benchmarks.deployment import Deployment
from benchmarks.measuring import format_seconds
from benchmarks.report import Row, at_most
from harness.waiting import wait_until
from harness.web_process import WebProcess
from smalti.messages import EncodeTask, GenerateTask, Message, Stage
from smalti.queue import BrokerPublisher, BrokerSettings, Delivery, consume
from smalti.registry import library
from smalti.registry.spec import ModelSpec
from smalti.storage import MemoryStore
from smalti.testing.stages import FakeStages

GOAL_SECONDS: Final = 0.05
INTERVAL_SECONDS: Final = 0.025
"""Time between two requests for `/healthz`."""
JOBS: Final = 8
"""Jobs that are watched; with 16 candidates each they are as many as the gateway sends at a time."""
CANDIDATES: Final = 16
CHUNKS: Final = 4
"""Chunks of a job of so many candidates."""
REFUSED: Final[tuple[dict[str, Any], ...]] = (
    {"prompt": ""},
    {"prompt": "x" * 10_000},
    {"prompt": "a\0cat"},
    {"prompt": "a cat", "size": "1x1"},
    {"prompt": "a cat", "steps": 3},
)
"""Requests that are refused, by the web service or by the gateway."""


@dataclass(frozen=True)
class Crowd:
    """The clients of the web service."""

    streams: int
    """Event streams that stay open."""
    rate: float
    """Refused requests per second."""
    seconds: float
    """Time for which requests are sent."""


FULL = Crowd(200, 50.0, 20.0)
QUICK = Crowd(10, 20.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class _Measured:
    health: list[float]
    """Seconds of the answers of `/healthz`."""
    refusals: list[float]
    """Seconds of the refusals."""
    before: int
    """Memory of the web service before the crowd came, in bytes."""
    after: int
    """Its memory while the crowd was there."""


def measure(crowd: Crowd) -> list[Row]:
    """Measures streams of jobs that wait, and of jobs whose pictures grow."""
    rows: list[Row] = []
    for drawing, what in ((False, "waiting jobs"), (True, "growing pictures")):
        with tempfile.TemporaryDirectory(prefix="smalti-bench-") as folder:
            measured = _measure(crowd, Path(folder), drawing=drawing)
        work = f"{crowd.streams} event streams of {what}, {crowd.rate:g} refused prompts/s"
        rows += _rows(work, measured)
    return rows


def _rows(work: str, measured: _Measured) -> Iterator[Row]:
    for name, seconds, goal in (
        ("95 % of /healthz within", measured.health, GOAL_SECONDS),
        ("95 % of the refusals within", measured.refusals, None),
    ):
        middle, most = np.percentile(seconds, [50, 95])
        reached = at_most(most, goal) if goal else ""
        yield Row(f"{work}: {name}", format_seconds(most), "", f"half in {format_seconds(middle)}", reached)
    grown = (measured.after - measured.before) / 2**20
    yield Row(
        f"{work}: memory of the web service", f"{measured.after / 2**20:.3g} MiB", "", f"{grown:+.3g} MiB"
    )


def _measure(crowd: Crowd, folder: Path, *, drawing: bool) -> _Measured:
    model = library.find("pictograms")
    with Deployment(folder, model.path, stages=()) as system:
        settings = {
            "SMALTI_SERVER": system.gateway,
            "SMALTI_LOG_LEVEL": "warning",
            # All clients have one address here.
            "SMALTI_WEB_CLIENT_RATE": "1000",
            "SMALTI_WEB_CLIENT_REQUESTS": "1000",
        }
        with (
            WebProcess(folder / "web", settings) as web,
            ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool,
        ):
            jobs = _create_jobs(web.url)
            # The imports of the pool's processes are not part of the load.
            for ready in [pool.submit(_stand_by) for _ in range(2)]:
                ready.result()
            process = psutil.Process(web.pids[0])
            before = process.memory_info().rss
            if drawing:
                side = ModelSpec.load(model).side
                drawn = pool.submit(_draw, system.valkey.url, side, crowd.seconds)
            refusals = pool.submit(_run_crowd, web.url, jobs, crowd)
            health = _ask_for_health(web.url, refusals.done)
            after = process.memory_info().rss
            if drawing:
                drawn.result()
            return _Measured(health=health, refusals=refusals.result(), before=before, after=after)


def _create_jobs(url: str) -> list[str]:
    with httpx2.Client(base_url=url) as client:
        bodies = ({"prompt": "a cat", "seed": seed, "n": 9, "candidates": CANDIDATES} for seed in range(JOBS))
        return [client.post("/api/jobs", json=body).json()["id"] for body in bodies]


def _stand_by() -> None:
    """Does nothing, in a process that has imported this module."""


def _ask_for_health(url: str, done: Callable[[], bool]) -> list[float]:
    """Asks for `/healthz` over one connection until something is done; returns the seconds of the answers."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    took = []
    while not done():
        begin = time.perf_counter()
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        answer.read()
        took.append(time.perf_counter() - begin)
        if answer.status != 200:
            raise RuntimeError(f"/healthz answers with {answer.status}")
        time.sleep(INTERVAL_SECONDS)
    connection.close()
    return took


def _run_crowd(url: str, jobs: list[str], crowd: Crowd) -> list[float]:
    """Opens the streams, and sends requests that are refused; returns the seconds of their answers."""
    return asyncio.run(_crowd(url, jobs, crowd))


async def _crowd(url: str, jobs: list[str], crowd: Crowd) -> list[float]:
    took: list[float] = []
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
        opened = asyncio.Semaphore(0)

        async def watch(job: str) -> None:
            async with client.stream("GET", f"/api/jobs/{job}/events") as response:
                response.raise_for_status()
                opened.release()
                async for _ in response.aiter_bytes():
                    pass
            raise RuntimeError(f"the stream of job {job} has ended")

        async def ask(body: dict[str, Any]) -> None:
            begin = time.perf_counter()
            response = await client.post("/v1/images/generations", json=body)
            took.append(time.perf_counter() - begin)
            if response.status_code != 400:
                raise RuntimeError(f"a request that must be refused is answered with {response.status_code}")

        async with asyncio.TaskGroup() as group:
            streams = [group.create_task(watch(jobs[number % len(jobs)])) for number in range(crowd.streams)]
            for _ in streams:
                await opened.acquire()
            begin = time.perf_counter()
            asking = []
            for number in range(int(crowd.rate * crowd.seconds)):
                # At fixed times, however long the answers take.
                await asyncio.sleep(begin + number / crowd.rate - time.perf_counter())
                asking.append(group.create_task(ask(REFUSED[number % len(REFUSED)])))
            await asyncio.wait(asking)
            for stream in streams:
                stream.cancel()
    return took


def _draw(broker: str, side: int, seconds: float) -> None:
    """Acts as encoder and generator: the rows of all chunks arrive evenly over a time."""
    settings = BrokerSettings(url=SecretStr(broker))
    publisher = BrokerPublisher(settings)
    stages = FakeStages(MemoryStore(), side * side)
    tasks: list[GenerateTask] = []

    def encode(delivery: Delivery) -> tuple[Message, ...]:
        if isinstance(delivery.message, EncodeTask):
            generates, done = stages.encode(delivery.message)
            publisher.publish(done)
            tasks.extend(generates)
        return ()

    with consume(Stage.ENCODE, encode, concurrency=1, publisher=publisher, settings=settings):
        wait_until(lambda: len(tasks) == JOBS * CHUNKS)
    begin = time.perf_counter()
    events = [stages.draw_rows(task, row) for row in range(1, side + 1) for task in tasks]
    for number, event in enumerate(events):
        time.sleep(max(0.0, begin + seconds * number / len(events) - time.perf_counter()))
        publisher.publish(event)
    publisher.close()
