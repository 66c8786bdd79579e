"""Measures how many prompts a second a batch takes through the whole system, and their cost, if engines do no work.

    python -m benchmarks.batches.throughput                         100,000 prompts; a few minutes on two cores
    python -m benchmarks.batches.throughput --prompts 5000          fewer
    python -m benchmarks.batches.throughput --write docs/batches.md also writes the tables into this page

Valkey, SeaweedFS, PostgreSQL, a gateway and the four stages are real processes; only the compute of the engines is left
out. Nothing else may compute at the same time; the share of the cores that other processes used is below the table.
"""

import argparse
import platform
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psutil
import sqlalchemy
from pydantic import SecretStr
from rich.console import Console
from rich.markdown import Markdown

import smalti
from benchmarks.deployment import STAGES, Deployment
from benchmarks.measuring import Bystanders, describe_machine, format_seconds
from benchmarks.report import Row, compared, write_between
from benchmarks.scale.costs import Counts
from benchmarks.scale.counting import CountedStore, Counters
from benchmarks.scale.planning import H100
from harness.meanwhile import meanwhile
from harness.servers import PostgresServer, free_port
from harness.waiting import wait_until
from smalti.client import Client, has_ended
from smalti.storage import StoreSettings, open_store
from smalti.testing.model import tiny_model
from smalti.v1 import batch_pb2
from smalti.v1.batch_pb2 import Batch

PROMPTS: Final = 100_000_000
"""Prompts of the arithmetic, on this many accelerators, with this many candidates each."""
ACCELERATORS: Final = 1000
CANDIDATES: Final = 16
TOLD: Final = (
    *("database: statements", "database: commits", "database: rows written", "database: bytes of the log"),
    *("broker: messages", "broker: commands", "store: requests", "store: PUT", "store: GET"),
    *("processor: gateway", "processor: PostgreSQL", "processor: Valkey", "processor: SeaweedFS"),
)
"""Counts of a shard that do not depend on how many candidates it has; but the store's processor time does."""
GOAL: Final = 500.0
"""Prompts a second."""
GOAL_ROW_BYTES: Final = 1000
"""Bytes of a shard in the database."""
SHARD_PROMPTS: Final = 256
WARM_UP_PROMPTS: Final = 512
"""Prompts of a batch before the measured one, which does not count."""
SAMPLE_SECONDS: Final = 2.0
SIZES: Final = (
    "SELECT coalesce(sum(pg_column_size(shards)), 0) + pg_indexes_size('shards'), pg_total_relation_size('shards') "
    "FROM shards"
)
IDLE_SECONDS: Final = 10.0
"""Time for which the idle system is counted: what it does anyway is not a cost of the batch."""
INPUT: Final = "inputs/throughput.txt"
PLACES: Final = ("throughput", "arithmetic")
"""Places in the page."""
BEGIN: Final = "<!-- {}: written by python -m benchmarks.batches.throughput -->"
END: Final = "<!-- end of {} -->"


@dataclass(kw_only=True)
class Samples:
    """What was seen of the processes while a batch was drawn."""

    memory: dict[str, list[float]] = field(default_factory=dict)
    """Proportional bytes of each process and its children, one for each sample."""
    row_bytes: float = 0.0
    """The largest size of the rows of shards, with the indexes."""
    table_bytes: float = 0.0
    """The largest size of their table with its indexes, and with old versions that are not removed yet."""

    def grown(self, name: str) -> float:
        """Returns how much the median memory of the last fifth of the time exceeds that of the second fifth."""
        seen = self.memory[name]
        fifth = max(1, len(seen) // 5)
        early, late = sorted(seen[fifth : 2 * fifth] or seen), sorted(seen[-fifth:])
        return late[len(late) // 2] - early[len(early) // 2]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A batch that was drawn."""

    prompts: int
    candidates: int
    batch: Batch
    counts: Counts
    """What everything has done for it, without what it does anyway."""
    samples: Samples

    @property
    def shards(self) -> int:
        """The number of its shards."""
        return int(self.batch.progress.shards)

    @property
    def seconds(self) -> float:
        """Time from its acceptance to its end."""
        return _seconds(self.batch.create_time, self.batch.end_time)

    @property
    def parts(self) -> Mapping[str, float]:
        """Seconds of each part of that time."""
        batch = self.batch
        return {
            "accepted, read, checked, and cut until the first shard is sent": _seconds(
                batch.create_time, batch.start_time
            ),
            "drawn": _seconds(batch.start_time, batch.finish_time),
            "finished: manifest and summary": _seconds(batch.finish_time, batch.end_time),
        }


def measure(prompts: int, candidates: int, shard_prompts: int, folder: Path) -> Measured:
    """Draws a batch in a whole system.

    Args:
        prompts: the number of prompts.
        candidates: candidates of each prompt, all of which become pictures.
        shard_prompts: prompts of a shard.
        folder: folder for data and logs.

    Raises:
        RuntimeError: the batch did not succeed, or not with all of its prompts.
    """
    model = tiny_model(folder / "model").path
    with _system(folder, model) as (system, counters, postgres), Client(system.gateway) as client:
        store = open_store(StoreSettings(url=SecretStr(system.store.url)))

        def draw(count: int) -> Batch:
            content = "".join(f"a red fox beside tree number {row}\n" for row in range(count)).encode()
            store.put(INPUT, content)
            made = client.batches.create(
                object_key=INPUT, n=candidates, candidates=candidates, shard_prompts=shard_prompts
            )
            wait_until(lambda: has_ended(client.batches.get(made.id)), 24 * 3600)
            batch = client.batches.get(made.id)
            progress = batch.progress
            if batch.state != batch_pb2.BATCH_STATE_SUCCEEDED or progress.prompts_drawn != count:
                raise RuntimeError(f"the batch was not drawn: {batch}")
            return batch

        draw(WARM_UP_PROMPTS)
        idle, began = counters.read(), time.monotonic()
        time.sleep(IDLE_SECONDS)
        before, ready = counters.read(), time.monotonic()
        with _sampled(system, postgres) as samples:
            batch = draw(prompts)
        after, ended = counters.read(), time.monotonic()
        counts = {}
        for name, value in after.items():
            first = before.get(name, 0.0)
            anyway = (first - idle.get(name, 0.0)) / (ready - began) * (ended - ready)
            counts[name] = max(0.0, value - first - anyway)
    return Measured(prompts=prompts, candidates=candidates, batch=batch, counts=counts, samples=samples)


def tables(measured: Measured, facts: Mapping[str, str]) -> list[str]:
    """Returns the lines, in Markdown, that tell what was measured."""
    rate = measured.prompts / measured.seconds
    size = measured.samples.row_bytes / measured.shards
    used = sum(count for name, count in measured.counts.items() if name.startswith("processor"))
    goal = f"under {GOAL_ROW_BYTES} B: {'reached' if size < GOAL_ROW_BYTES else 'missed'}"
    rows = [
        Row("prompts a second, from acceptance to end", f"{rate:.0f}", "", *compared(rate, GOAL, "/s")),
        *(Row(part, format_seconds(seconds)) for part, seconds in measured.parts.items()),
        Row("processor time of a prompt, of all processes", format_seconds(used / measured.prompts)),
        Row("database: bytes of the row of a shard, with indexes", f"{size:.0f} B", "", "", goal),
        Row("the same with its old versions", f"{measured.samples.table_bytes / measured.shards:.0f} B"),
    ]
    lines = ["", "| what | measured | goal |", "|---|---|---|"]
    lines += [f"| {row.work} | {row.ours} | {row.goal} |" for row in rows]
    lines += ["", "| each | shard | prompt |", "|---|---|---|"]
    for name, count in sorted(measured.counts.items()):
        if not count:
            continue
        is_time = name.startswith("processor")
        shard, prompt = count / measured.shards, count / measured.prompts
        shown = (
            (format_seconds(shard), format_seconds(prompt)) if is_time else (_short(shard), _short(prompt))
        )
        lines.append(f"| {name} | {shown[0]} | {shown[1]} |")
    lines += ["", "| memory of | most | grown while drawing |", "|---|---|---|"]
    for name, seen in measured.samples.memory.items():
        grown = measured.samples.grown(name)
        lines.append(f"| {name} | {max(seen) / 2**20:.0f} MiB | {grown / 2**20:+.1f} MiB |")
    return [*lines, "", *(f"* {name}: {fact}" for name, fact in facts.items()), ""]


def arithmetic(measured: Measured) -> list[str]:
    """Returns the lines, in Markdown, of what many prompts need on many accelerators, from what a shard has needed."""
    shards = PROMPTS / SHARD_PROMPTS
    seconds = PROMPTS * CANDIDATES / (ACCELERATORS * H100.candidates)
    rate = shards / seconds
    lines = ["", "| what | altogether | a second |", "|---|---|---|"]
    lines += [f"| prompts | {PROMPTS:,} | {PROMPTS / seconds:,.0f} |"]
    lines += [f"| shards of {SHARD_PROMPTS} | {shards:,.0f} | {rate:.1f} |"]
    lines += [f"| time of the accelerators | {seconds / 3600:.1f} h | |"]
    for name in TOLD:
        each = measured.counts.get(name, 0.0) / measured.shards
        if name.startswith("processor"):
            lines.append(f"| {name} | {each * shards / 3600:,.1f} h | {each * rate:.2f} cores |")
        else:
            lines.append(f"| {name} | {each * shards:,.0f} | {each * rate:,.0f} |")
    return [*lines, ""]


def _short(count: float) -> str:
    return f"{count:,.0f}" if count >= 1000 else f"{count:.3g}"


def _seconds(begin: Any, end: Any) -> float:
    return float((end.ToNanoseconds() - begin.ToNanoseconds()) / 1e9)


@contextmanager
def _system(folder: Path, model: Path) -> Iterator[tuple[Deployment, Counters, PostgresServer]]:
    """Runs a system whose gateway and store are counted while the block runs."""
    postgres, port = PostgresServer(folder / "postgres"), free_port()
    idle = {name: ("benchmarks.batches.idle", name) for name in STAGES}
    with (
        postgres,
        Deployment(
            folder,
            model,
            settings={"SMALTI_GATEWAY_DATABASE": postgres.url, "SMALTI_MESSAGES_WRITE": "3"},
            commands={**idle, "gateway": ("benchmarks.scale.counted_gateway", str(port))},
            store=CountedStore(folder / "store"),
        ) as system,
    ):
        yield system, Counters(system, port, postgres), postgres


@contextmanager
def _sampled(system: Deployment, postgres: PostgresServer) -> Iterator[Samples]:
    """Samples the memory of all processes, and the size of the table of shards, while the block runs."""
    samples = Samples()
    servers: dict[str, Any] = {
        **system.services,
        "Valkey": system.valkey,
        "SeaweedFS": system.store,
        "PostgreSQL": postgres,
    }
    address = postgres.url.replace("postgresql:", "postgresql+psycopg:")
    engine = sqlalchemy.create_engine(address)

    def sample(over: threading.Event) -> None:
        while not over.wait(SAMPLE_SECONDS):
            for name, server in servers.items():
                samples.memory.setdefault(name, []).append(_resident(server.pids[-1]))
            with engine.connect() as connection:
                rows, table = connection.execute(sqlalchemy.text(SIZES)).one()
            samples.row_bytes = max(samples.row_bytes, float(rows))
            samples.table_bytes = max(samples.table_bytes, float(table))

    try:
        with meanwhile(sample):
            yield samples
    finally:
        engine.dispose()


def _resident(pid: int) -> float:
    """Returns the memory of a process and its children, in bytes; what they share is divided among them."""
    top = psutil.Process(pid)
    found = 0
    for process in (top, *top.children(recursive=True)):
        try:
            found += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return float(found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and prints or writes the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.batches.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prompts", type=int, default=100_000, help="prompts of the batch")
    parser.add_argument(
        "--candidates", type=int, default=1, help="candidates of each prompt; all are pictures"
    )
    parser.add_argument("--shard", type=int, default=SHARD_PROMPTS, help="prompts of a shard")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the tables into this page")
    options = parser.parse_args(arguments)
    bystanders, began = Bystanders(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="smalti-batches-") as name:
        Path(name).chmod(0o755)  # PostgreSQL's user may enter it.
        measured = measure(options.prompts, options.candidates, options.shard, Path(name))
    lines = tables(
        measured,
        {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "processor": describe_machine()["processor"],
            "versions": f"Python {platform.python_version()}, smalti {smalti.__version__}",
            "batch": f"{measured.prompts:,} prompts, each with {measured.candidates} candidate"
            f"{'s' * (measured.candidates > 1)} of the tiny model; {measured.shards:,} shards of {options.shard}",
            "other processes": f"used {bystanders.share():.0%} of the cores during the run of "
            f"{format_seconds(time.monotonic() - began)}",
        },
    )
    written = dict(zip(PLACES, (lines, arithmetic(measured)), strict=True))
    for name, each in written.items():
        Console(width=160).print(Markdown("\n".join(each)))
        if options.write:
            write_between(options.write, each, begin=BEGIN.format(name), end=END.format(name))


if __name__ == "__main__":
    main()
