"""Measures planning and finishing of large batches: rows a second, and memory, which must not grow with the rows.

Writes inputs of several sizes and formats into a temporary folder. A process of its own checks each whole input, cuts
it into shards, and throws these away; another one finishes a batch whose results it makes up. Each prints its time and
its peak memory (VmHWM).

    python -m benchmarks.batches.planning
    python -m benchmarks.batches.planning --rows 10000000 --formats text parquet
    python -m benchmarks.batches.planning --rows 100000 --json
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pyarrow as pa
from pyarrow import parquet

from smalti.batches import (
    BatchDefaults,
    BatchDescription,
    BatchPlan,
    FolderPlace,
    InputFormat,
    InputRecord,
    PictureFormat,
    PictureRecord,
    PromptResult,
    ResultPart,
    ShardRange,
    finish,
)
from smalti.parameters import SamplingParameters

DEFAULTS: Final = BatchDefaults(default_n=9, default_candidates=16, sampling=SamplingParameters())
SHARD: Final = 256
ROWS_AT_ONCE: Final = 100_000
FINISH: Final = "finish"
MEBIBYTE: Final = 2**20


def main() -> None:
    """Runs the measurements and prints them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="*", type=int, default=[1_000_000, 10_000_000])
    parser.add_argument("--formats", nargs="*", choices=[*WRITERS, FINISH], default=[*WRITERS, FINISH])
    parser.add_argument("--folder", type=Path, help="folder for the temporary files")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object for each line of the table"
    )
    parser.add_argument("--measure", nargs=3, metavar=("FORMAT", "ROWS", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        form, rows, folder = options.measure
        print(json.dumps(measure(form, int(rows), Path(folder))))
        return
    if not options.json:
        print(f"{'what':8} {'rows':>12} {'check, rows/s':>14} {'cut, rows/s':>14} {'peak memory':>12}")
    for form in options.formats:
        for rows in options.rows:
            with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
                if form in WRITERS:
                    WRITERS[form](Path(temporary) / form, rows)
                report(form, rows, run_apart(form, rows, Path(temporary)), as_json=options.json)


def run_apart(form: str, rows: int, folder: Path) -> dict[str, float]:
    """Measures in a process of its own, and returns what it prints."""
    command = [sys.executable, "-m", "benchmarks.batches.planning", "--measure", form, str(rows), str(folder)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(finished.stdout)
    return found


def measure(form: str, rows: int, folder: Path) -> dict[str, float]:
    """Returns seconds and peak memory of planning an input, or of finishing a batch."""
    if form == FINISH:
        return {"cut": _seconds(partial(_finish, rows, folder)), "memory": _peak_memory()}
    plan = BatchPlan(
        open=lambda: (folder / form).open("rb"),
        format=InputFormat(form),
        defaults=DEFAULTS,
        shard_prompts=SHARD,
    )
    check = _seconds(lambda: plan.check(folder=folder))
    cut = _seconds(lambda: sum(len(shard.to_bytes()) for shard in plan.shards()))
    return {"check": check, "cut": cut, "memory": _peak_memory()}


def report(form: str, rows: int, found: dict[str, float], *, as_json: bool) -> None:
    """Prints a line of the table."""
    if as_json:
        print(json.dumps({"what": form, "rows": rows, **found}), flush=True)
        return
    check = f"{rows / found['check']:,.0f}" if "check" in found else ""
    memory = f"{found['memory'] / MEBIBYTE:.0f} MiB"
    print(f"{form:8} {rows:12,} {check:>14} {rows / found['cut']:14,.0f} {memory:>12}", flush=True)


def _prompts(start: int, count: int) -> list[str]:
    return [f"a red fox in the snow beside tree number {row}" for row in range(start, start + count)]


def _chunks(rows: int) -> Iterator[tuple[int, list[str]]]:
    for start in range(0, rows, ROWS_AT_ONCE):
        yield start, _prompts(start, min(ROWS_AT_ONCE, rows - start))


def _write_text(path: Path, rows: int) -> None:
    with path.open("w") as file:
        for _, prompts in _chunks(rows):
            file.writelines(f"{prompt}\n" for prompt in prompts)


def _write_jsonl(path: Path, rows: int) -> None:
    with path.open("w") as file:
        for start, prompts in _chunks(rows):
            for row, prompt in enumerate(prompts, start):
                file.write(f'{{"id": "row-{row}", "prompt": "{prompt}", "n": 4}}\n')


def _write_csv(path: Path, rows: int) -> None:
    with path.open("w") as file:
        file.write("id,prompt,seed\n")
        for start, prompts in _chunks(rows):
            file.writelines(f'row-{row},"{prompt}",{row}\n' for row, prompt in enumerate(prompts, start))


def _write_parquet(path: Path, rows: int) -> None:
    schema = pa.schema([("id", pa.string()), ("prompt", pa.string()), ("seed", pa.int64())])
    with parquet.ParquetWriter(path, schema) as writer:
        for start, prompts in _chunks(rows):
            numbers = range(start, start + len(prompts))
            columns = [[f"row-{row}" for row in numbers], prompts, list(numbers)]
            writer.write_table(pa.table(dict(zip(schema.names, columns, strict=True)), schema))


WRITERS: Final[dict[str, Callable[[Path, int], None]]] = {
    "text": _write_text,
    "jsonl": _write_jsonl,
    "csv": _write_csv,
    "parquet": _write_parquet,
}


def _finish(rows: int, folder: Path) -> None:
    """Finishes a batch of which every prompt has nine pictures."""
    description = BatchDescription(
        input=InputRecord(name="prompts.txt", sha256="0" * 64, format=InputFormat.TEXT),
        model="none",
        parameters=DEFAULTS,
        picture_format=PictureFormat.WEBP,
        shard_prompts=SHARD,
        prompts=rows,
        blank=0,
    )
    parts = (
        ResultPart(range=shard, load=partial(_results, shard))
        for number in range(description.shards)
        if (shard := ShardRange(number=number, count=description.prompts_of(number)))
    )
    finish(FolderPlace(folder / "output"), description, parts, folder=folder)


def _results(shard: ShardRange) -> bytes:
    start = shard.number * SHARD
    return PromptResult.to_bytes(
        PromptResult(
            row=row,
            id=str(row),
            prompt=prompt,
            seed=row,
            state="drawn",
            tar=f"{shard.name}.tar",
            model="none",
            revision="0",
            pictures=tuple(
                PictureRecord(
                    key=f"{row:09d}-{rank}",
                    candidate=rank,
                    score=rank / 9,
                    sha256=f"{row * 9 + rank:064x}",
                    size=10_000,
                    width=256,
                    height=256,
                )
                for rank in range(9)
            ),
        )
        for row, prompt in enumerate(_prompts(start, shard.count), start)
    )


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _peak_memory() -> float:
    """Returns the peak memory of this process in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return float(found[1]) * 1024 if found else 0.0


if __name__ == "__main__":
    main()
