"""Measures by how much ten thousand jobs of one tenant delay single jobs of another.

    python -m benchmarks.fairness             with SQLite and PostgreSQL; some minutes
    python -m benchmarks.fairness --jobs 500  fewer jobs

The gateway is real, with its threads and its database. Workers are played: they take what the gateway sends in its
order, hold as many candidates at a time as generators with some slots would, and send the events of real
ones after a fixed time.
"""

import argparse
import heapq
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from sqlalchemy import delete, insert, text

from benchmarks.measuring import Bystanders, describe_machine, format_seconds
from harness.gateway import GatewayHarness, finish_chunk, job_spec, sqlite_database
from harness.servers import PostgresServer
from harness.web import RunningClock
from smalti.messages import EncodeTask, GenerateTask, Message
from smalti.registry import library
from smalti.registry.spec import ModelSpec
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import Chunk, Job, JobState, Tenant
from smalti.services.gateway.jobs.lifecycle import new_chunk
from smalti.services.gateway.settings import GatewaySettings
from smalti.services.gateway.work.picking import Picker

SLOTS: Final = 64
"""Candidates at a time; the window is twice as many."""
CHUNK_SECONDS: Final = 1.0
CANDIDATES: Final = 16
"""Of each job; it is a turn too."""
TICK_SECONDS: Final = 0.002
CALLERS: Final = 16
LIMIT_SECONDS: Final = 120.0
PICKS: Final = 50
WAITING: Final = {"1 tenant": (1, 32_000), "1,000 tenants": (1000, 32)}
"""Tenants, and chunks of each; a job has at most 32,767."""
_JOB: Final[dict[str, Any]] = {
    "version": 1, "state": JobState.QUEUED, "parameters": {}, "given": [], "priority": 0, "labels": {}, "created": 0,
    "expires": 2**60, "retention": 0, "candidates": 4, "rows": 0, "rows_drawn": 0, "candidates_generated": 0,
    "candidates_decoded": 0, "candidates_ranked": 0, "prompt_encoded": False, "lease": 0, "revision": "r",
    "pinned": False, "refining": False, "pictures_to_refine": 0, "pictures_refined": 0, "pictures_refused": 0,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Wait:
    """What a single job has waited for."""

    before: int
    """Candidates of other tenants that were sent between its acceptance and its own."""
    sent: float
    """Seconds until it was sent."""
    ended: float
    """Seconds until it had ended."""


class Workers:
    """Plays the workers in a thread, and notes what was sent and when."""

    def __init__(self, gateway: GatewayHarness) -> None:
        self._gateway = gateway
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="workers")
        self.sent: list[tuple[str, int, float]] = []
        """Job, candidates and time of each message, in order."""
        self._publish = gateway.publisher.publish
        gateway.publisher.publish = self._note  # type: ignore[method-assign]

    def __enter__(self) -> "Workers":
        """Starts the thread."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the thread."""
        self._ending.set()
        self._thread.join()

    def _note(self, message: Message, *, timeout: float | None = None) -> None:
        assert isinstance(message, EncodeTask)
        self._publish(message)
        count = sum(len(chunk.candidates) for chunk in message.chunks)
        self.sent.append((message.job, count, time.monotonic()))

    def _run(self) -> None:
        waiting: deque[GenerateTask] = deque()
        working: list[tuple[float, int, GenerateTask]] = []
        number = busy = 0
        while not self._ending.wait(TICK_SECONDS):
            for task in self._gateway.publisher.take():
                assert isinstance(task, EncodeTask)
                generates, event = self._gateway.stages.encode(task)
                self._gateway.handle(event)
                waiting += generates
            while waiting and busy + len(waiting[0].candidates) <= SLOTS:
                chunk = waiting.popleft()
                number += 1
                busy += len(chunk.candidates)
                heapq.heappush(working, (time.monotonic() + CHUNK_SECONDS, number, chunk))
            while working and working[0][0] <= time.monotonic():
                _, _, chunk = heapq.heappop(working)
                busy -= len(chunk.candidates)
                self._gateway.handle(finish_chunk(self._gateway, chunk))


def measure(database: Database, jobs: int, singles: int, turn: int) -> list[Wait]:
    """Returns what each of some single jobs has waited for, one after the other, behind the jobs of another tenant."""
    with database.write() as session:
        session.add_all([Tenant(id="many"), Tenant(id="single")])
    spec = ModelSpec.load(library.find("pictograms"))
    limits: dict[str, Any] = {"open_jobs": 10**6, "stored_jobs": 10**6, "window": 2 * SLOTS, "turn": turn}
    gateway = GatewayHarness(database, spec, clock=RunningClock(), **limits)
    with ThreadPoolExecutor(CALLERS) as threads:
        many = job_spec(tenant="many", candidates=CANDIDATES, time_limit=86_400.0)
        for accepted in [threads.submit(gateway.jobs.create, many) for _ in range(jobs)]:
            accepted.result()
    gateway.gateway.start()
    try:
        with Workers(gateway) as workers:
            _wait(lambda: len(workers.sent) > 2 * SLOTS // CANDIDATES)
            return [_single(gateway, workers) for _ in range(singles)]
    finally:
        gateway.gateway.stop()
        gateway.close()


def _single(gateway: GatewayHarness, workers: Workers) -> Wait:
    spec = job_spec(tenant="single", candidates=CANDIDATES)
    job = gateway.jobs.create(spec).job.id
    before, began = len(workers.sent), time.monotonic()

    def place() -> int | None:
        return next((at for at, sent in enumerate(workers.sent) if sent[0] == job), None)

    _wait(lambda: place() is not None)
    at = place() or 0
    others = sum(count for _, count, _ in workers.sent[before:at])
    _wait(lambda: gateway.jobs.get(job, full=False).job.ended is not None)
    ended = time.monotonic()
    return Wait(before=others, sent=workers.sent[at][2] - began, ended=ended - began)


def _wait(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + LIMIT_SECONDS
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("nothing happens")
        time.sleep(TICK_SECONDS)


@contextmanager
def _databases() -> Iterator[list[tuple[str, Database]]]:
    with TemporaryDirectory() as folder, PostgresServer() as server:
        postgres = Database(server.url)
        postgres.migrate()
        with closing(sqlite_database(Path(folder))) as sqlite, closing(postgres):
            yield [("SQLite", sqlite), ("PostgreSQL", postgres)]


def pick_seconds(database: Database, tenants: int, chunks: int) -> list[float]:
    """Returns how long it takes to choose the next 128 candidates while tenants have chunks of 4 that wait."""
    names = [f"t{number:04}" for number in range(tenants)]
    with database.write() as session:
        session.execute(insert(Tenant), [{"id": name} for name in names])
        session.execute(insert(Job), [{**_JOB, "id": name, "tenant": name} for name in names])
        jobs = [Job(id=name, tenant=name, priority=0, created=0, revision="r") for name in names]
        rows = [new_chunk(job, number, first=0, count=4) for job in jobs for number in range(chunks)]
        session.execute(insert(Chunk), rows)
    with database.write() as session:
        session.execute(text("ANALYZE"))
    picker = Picker(GatewaySettings(), time.time)
    times = []
    for _ in range(PICKS):
        began = time.perf_counter()
        with database.read() as session:
            runs, _ = picker.pick(session, lambda leased: {"r": 2 * SLOTS}, limit=256)
        times.append(time.perf_counter() - began)
        assert sum(len(run.numbers) for run in runs) * 4 >= 2 * SLOTS
    with database.write() as session:
        for table in (Chunk, Job):
            session.execute(delete(table))
        session.execute(delete(Tenant).where(Tenant.id.in_(names)))
    return times


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs of the other tenant")
    parser.add_argument("--singles", type=int, default=20, help="single jobs")
    parser.add_argument("--turn", type=int, default=CANDIDATES, help="candidates of a turn")
    options = parser.parse_args()
    bystanders = Bystanders()
    picks: list[str] = []
    print("| database | candidates sent before it: most | until it is sent | until it has ended |")
    print("|---|---|---|---|")
    with _databases() as databases:
        for name, database in databases:
            for waiting, (tenants, chunks) in WAITING.items():
                times = pick_seconds(database, tenants, chunks)
                picks.append(
                    f"| {name} | {waiting} | {tenants * chunks:,} | {format_seconds(statistics.median(times))} "
                    f"(at most {format_seconds(max(times))}) |"
                )
            waits = measure(database, options.jobs, options.singles, options.turn)
            cells = [f"{max(each.before for each in waits)}"]
            for times in ([each.sent for each in waits], [each.ended for each in waits]):
                cells.append(
                    f"{format_seconds(statistics.median(times))} (at most {format_seconds(max(times))})"
                )
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print("\n| database | with work | chunks that wait | to choose the next 128 candidates |")
    print("|---|---|---|---|", *picks, sep="\n")
    print(f"\n{options.jobs:,} jobs of {CANDIDATES} candidates, {options.singles} single ones, {SLOTS} slots")
    print(f"{describe_machine()['processor']}; other processes used {bystanders.share():.0%} of it")


if __name__ == "__main__":
    main()
