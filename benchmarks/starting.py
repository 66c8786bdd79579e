"""Measures how long a user waits for the first picture, in new processes, beside the time of `import jax, torch`."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.measuring import Times
from benchmarks.report import Row, at_most

PROMPT: Final = "a blue cat on a yellow background"
IMPORTS: Final = "import jax, torch"
PIPELINE: Final = f"from smalti import Pipeline; Pipeline.load().generate({PROMPT!r}, seed=7)"
MAX_RATIO: Final = 1.8
WARM_SECONDS, COLD_SECONDS, SYSTEM_SECONDS = 5.0, 15.0, 8.0
_READY: Final = re.compile(r"ready after ([0-9.]+) s")


def measure(repeats: int) -> Iterator[Row]:
    """Measures starts with the shipped model: once without kept programs, then `repeats` times with them."""
    with tempfile.TemporaryDirectory(prefix="smalti-bench-") as name:
        folder = Path(name)
        cold = [_seconds(_generate(folder), folder / f"cold-{number}") for number in range(repeats)]
        warm = folder / "warm"
        imports, generates, pipelines, systems = [], [], [], []
        _seconds(_generate(folder), warm)
        _ready_seconds(folder, warm)
        # In turns, so that all see the same machine.
        for _ in range(repeats):
            imports.append(_seconds(("-c", IMPORTS), warm))
            generates.append(_seconds(_generate(folder), warm))
            pipelines.append(_seconds(("-c", PIPELINE), warm))
            systems.append(_ready_seconds(folder, warm))
    beside = Times(tuple(imports))
    yield Row("a process that only imports jax and torch", str(beside))
    yield _row("`smalti generate`, 9 of 16 pictures, programs kept", generates, WARM_SECONDS, beside)
    yield _row("`Pipeline.load()` and nine pictures, programs kept", pipelines, WARM_SECONDS, beside)
    yield _row("`smalti generate`, 9 of 16 pictures, the first time", cold, COLD_SECONDS)
    yield _row("`smalti up` until all processes are ready, programs kept", systems, SYSTEM_SECONDS)


def _row(work: str, seconds: Sequence[float], goal: float, beside: Times | None = None) -> Row:
    times = Times(tuple(seconds))
    if beside is None:
        return Row(work, str(times), goal=at_most(times.median, goal))
    ratio = times.median / beside.median
    verdict = f"{at_most(times.median, goal)}; at most {MAX_RATIO:g}x: {'reached' if ratio <= MAX_RATIO else 'missed'}"
    return Row(work, str(times), result=f"{ratio:.2f}x the imports", goal=verdict)


def _generate(folder: Path) -> tuple[str, ...]:
    return "-m", "smalti", "generate", PROMPT, "--seed", "7", "--out", str(folder / "pictures")


def _seconds(arguments: Sequence[str], cache: Path) -> float:
    """Returns the time of a Python process from its start to its exit."""
    began = time.perf_counter()
    _run(arguments, cache)
    return time.perf_counter() - began


def _ready_seconds(folder: Path, cache: Path) -> float:
    """Returns the time after which `smalti up` says that everything is ready."""
    arguments = ("-m", "smalti", "up", "--ports", "free", "--data", str(folder / "up"), "--", "true")
    found = _READY.search(_run(arguments, cache))
    assert found is not None
    return float(found[1])


def _run(arguments: Sequence[str], cache: Path) -> str:
    """Runs Python with arguments and a folder of compiled programs; returns what it printed on standard error."""
    # As on a user's machine: bytecode is kept, no gateway and no other cache are named.
    dropped = ("PYTHONDONTWRITEBYTECODE", "SMALTI_SERVER", "JAX_COMPILATION_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**environment, "SMALTI_COMPILATION_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stderr
