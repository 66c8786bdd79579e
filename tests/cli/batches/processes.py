"""Runs of `smalti batch` as processes that a test ends."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from harness.processes import started

LIMIT = 900.0
"""Seconds that a run may take, on a busy machine."""
COMMAND = [sys.executable, "-m", "smalti"]


def end_when(command: list[str], number: int, is_time: Callable[[], bool]) -> tuple[int, str]:
    """Sends a signal to a process once it is time; returns its exit status, and what it said."""
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        deadline = time.monotonic() + LIMIT
        while not is_time():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        said, _ = process.communicate(timeout=LIMIT)
        return process.returncode, said


def ends(command: list[str]) -> tuple[int, str]:
    """Runs a command to its end; returns its exit status, and what it said."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    return done.returncode, done.stdout + done.stderr


def parts(out: Path) -> int:
    """Returns the number of shards that are done."""
    return len(list(out.glob("_work/parts/*.jsonl")))
