"""Checks and times Smalti on this machine's GPU or TPU, and prints the tables for `docs/performance.md`.

    python -m benchmarks.accelerator                          everything; a few minutes on an H100
    python -m benchmarks.accelerator --out accelerator.json   keeps the results as JSON, row by row
    python -m benchmarks.accelerator --only golden mini-16    some rows
    python -m benchmarks.accelerator --small                  tiny shapes, to check that it runs; on a CPU, too

Each row is a process of its own with a time limit, so that one that fails, hangs or runs out of memory leaves the
others alone. Nothing is installed or downloaded; torch is compared with if it is there.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.accelerator.results import Check, parse, tables

ROOT = Path(__file__).parents[2]
NAMES = (
    "limits", "golden", "mini-16", "decode", "torch-mini-16", "mega-16", "torch-mega-16", "mini-64", "torch-mini-64",
    "mega-64", "torch-mega-64",
)  # fmt: skip
"""The rows, the cheapest and most valuable first."""
MARK = "result: "
ROW_SECONDS = 120.0
ALL_SECONDS = 540.0


def measure_here(name: str, *, small: bool) -> None:
    """Measures one row and prints its results as they come, each as a line of JSON."""
    import jax

    from benchmarks.accelerator.plan import FULL, SMALL
    from benchmarks.accelerator.rows import ROWS
    from smalti.compilation import use_compilation_cache

    use_compilation_cache()
    if not small and not name.startswith("torch") and jax.default_backend() == "cpu":
        sys.exit("JAX sees no GPU or TPU: install jax[cuda13], jax[cuda12] or jax[tpu], or use --small")
    for result in ROWS[name](SMALL if small else FULL):
        print(MARK + json.dumps(asdict(result)), flush=True)


def measure_apart(name: str, *, small: bool, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """Measures one row in a process of its own; returns its results so far, and its error or an empty text."""
    command = [sys.executable, "-m", "benchmarks.accelerator", "--row", name, *(["--small"] if small else [])]
    # Memory is taken as it is needed, so that its peak means something.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            err += f"\nstopped after {seconds:.0f} s"
    lines = [line.removeprefix(MARK) for line in out.splitlines() if line.startswith(MARK)]
    said = [line for line in err.splitlines() if line.strip()] or [f"ended with {process.returncode}"]
    return [json.loads(line) for line in lines], said[-1].strip() if process.returncode else ""


def main() -> None:
    """Measures the rows and prints the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="rows to measure")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results into this file, as JSON")
    parser.add_argument("--small", action="store_true", help="use tiny shapes, only to check that it runs")
    parser.add_argument("--row-seconds", type=float, default=ROW_SECONDS, help="time limit of a row")
    parser.add_argument("--seconds", type=float, default=ALL_SECONDS, help="no row runs past this time")
    parser.add_argument("--row", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        measure_here(options.row, small=options.small)
        return
    begin = time.monotonic()
    results: list[dict[str, Any]] = []
    errors: dict[str, str] = {}
    for name in options.only:
        began = time.monotonic()
        left = options.seconds - (began - begin)
        if left <= 0:
            errors[name] = "not measured: the time was over"
            continue
        found, error = measure_apart(name, small=options.small, seconds=min(left, options.row_seconds))
        results += found
        if error:
            errors[name] = error
        print(f"{name}: {time.monotonic() - began:.1f} s {error}".rstrip(), flush=True)
        for each in found:
            print(f"  {json.dumps(each)}", flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps({"results": results, "errors": errors}, indent=1), "utf-8")
    parsed = [parse(each) for each in results]
    print("\n" + tables(parsed, errors))
    if errors or any(isinstance(each, Check) and each.passed is False for each in parsed):
        sys.exit(1)


if __name__ == "__main__":
    main()
