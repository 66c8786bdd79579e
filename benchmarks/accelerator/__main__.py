"""Checks and times Smalti on this machine's GPU or TPU, and prints the tables for `docs/performance.md`.

    python -m benchmarks.accelerator --out accelerator.json   keeps the results as JSON, row by row
    python -m benchmarks.accelerator --missing                what docs/performance.md and the file of --out lack
    python -m benchmarks.accelerator --only golden mini-16    some rows
    python -m benchmarks.accelerator --small                  tiny shapes, to check that it runs; on a CPU, too

Each row is a process of its own with a time limit, so that one that fails, hangs or runs out of memory leaves the
others alone. Nothing is installed or downloaded; torch is compared with if it is there.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.accelerator.listing import MISSING, ROWS, missing_packages
from benchmarks.accelerator.results import Check, parse, tables

ROOT = Path(__file__).parents[2]
MARK = "result: "
ROW_SECONDS = 120.0
ALL_SECONDS = 540.0
"""A minute less than a command may take on a machine that is lent for ten."""
REFUSED_FLAG = re.compile(r"(?:Unknown flag in XLA_FLAGS:|Illegal value for) .*$", re.MULTILINE)
RAISED = re.compile(r"^[\w.]+(?:Error|Exception)\b.*$", re.MULTILINE)


def measure_here(name: str, *, small: bool) -> None:
    """Measures one row and prints its results as they come, each as a line of JSON."""
    import jax

    from benchmarks.accelerator.plan import FULL, SMALL
    from benchmarks.accelerator.rows import measure_row
    from smalti.compilation import use_compilation_cache

    use_compilation_cache()
    if not small and ROWS[name].measure != "torch_tokens" and jax.default_backend() == "cpu":
        sys.exit("JAX sees no GPU or TPU: install jax[cuda13], jax[cuda12] or jax[tpu], or use --small")
    for result in measure_row(name, SMALL if small else FULL):
        print(MARK + json.dumps(asdict(result)), flush=True)


def measure_apart(
    name: str, *, small: bool, seconds: float, flags: str = ""
) -> tuple[list[dict[str, Any]], str]:
    """Measures one row in a process of its own; returns its results so far, and its error or an empty text.

    Flags of XLA come after those of the environment and of the row.
    """
    command = [sys.executable, "-m", "benchmarks.accelerator", "--row", name, *(["--small"] if small else [])]
    # Memory is taken as it is needed, so that its peak means something.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    flags = " ".join(each for each in (environment.get("XLA_FLAGS", ""), ROWS[name].flags, flags) if each)
    if flags:
        environment["XLA_FLAGS"] = flags
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            error = f"stopped after {seconds:.0f} s"
        else:
            error = explain(process.returncode, err) if process.returncode else ""
    lines = [line.removeprefix(MARK) for line in out.splitlines() if line.startswith(MARK)]
    return [json.loads(line) for line in lines], error


def explain(code: int, err: str) -> str:
    """Returns in one line why a process has failed."""
    # XLA prints hundreds of lines about its flags after the reason, and JAX a few about its traceback.
    if refused := REFUSED_FLAG.search(err):
        return refused[0]
    if raised := RAISED.findall(err):
        return raised[-1]
    said = [line.strip() for line in err.splitlines() if line.strip()]
    return said[-1] if said else f"ended with {code}"


def load(file: Path | None) -> dict[str, dict[str, Any]]:
    """Returns the results and the error of each row in a file, if it is there."""
    if file is None or not file.exists():
        return {}
    try:
        kept: dict[str, dict[str, Any]] = json.loads(file.read_text("utf-8"))["rows"]
    except (ValueError, KeyError, TypeError):
        sys.exit(f"--out: {file} is not a file of results; delete it or name another one")
    return kept


def choose(names: Sequence[str], kept: dict[str, dict[str, Any]], *, missing: bool, torch: bool) -> list[str]:
    """Returns the names of the rows to measure.

    Args:
        names: the rows that were asked for.
        kept: the results and the error of each row in the file of results.
        missing: whether only rows are measured that neither the documentation nor the file has.
        torch: whether torch is installed.
    """
    return [
        name
        for name in names
        if (torch or ROWS[name].measure != "torch_tokens")
        and (not missing or (name in MISSING and (name not in kept or kept[name]["error"])))
    ]


def main() -> None:
    """Measures the rows and prints the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(ROWS), default=list(ROWS), help="rows to measure", metavar="ROW"
    )
    parser.add_argument(
        "--missing",
        action="store_true",
        help="only rows that neither docs/performance.md nor the file of --out has",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results into this file, as JSON")
    parser.add_argument("--small", action="store_true", help="use tiny shapes, only to check that it runs")
    parser.add_argument("--row-seconds", type=float, default=ROW_SECONDS, help="time limit of a row")
    parser.add_argument("--seconds", type=float, default=ALL_SECONDS, help="no row runs past this time")
    parser.add_argument("--row", choices=list(ROWS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if absent := missing_packages():
        names = " ".join(absent)
        sys.exit(f"missing packages: {names}; install them with {sys.executable} -m pip install {names}")
    if options.row:
        measure_here(options.row, small=options.small)
        return
    begin = time.monotonic()
    rows = load(options.out) if options.missing else {}
    has_torch = find_spec("torch") is not None
    if not has_torch:
        print("torch is not installed: nothing is compared with it", flush=True)
    for name in choose(options.only, rows, missing=options.missing, torch=has_torch):
        began = time.monotonic()
        left = options.seconds - (began - begin)
        found: list[dict[str, Any]] = []
        error = "not measured: the time was over"
        if left > 0:
            found, error = measure_apart(name, small=options.small, seconds=min(left, options.row_seconds))
        rows[name] = {"results": found, "error": error}
        print(f"{name}: {time.monotonic() - began:.1f} s {error}".rstrip(), flush=True)
        for each in found:
            print(f"  {json.dumps(each)}", flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps({"rows": rows}, indent=1), "utf-8")
    parsed = [parse(each) for row in rows.values() for each in row["results"]]
    errors = {name: row["error"] for name, row in rows.items() if row["error"]}
    print("\n" + tables(parsed, errors))
    if errors or any(isinstance(each, Check) and each.passed is False for each in parsed):
        sys.exit(1)


if __name__ == "__main__":
    main()
