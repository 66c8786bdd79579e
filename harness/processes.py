"""Processes that a test starts: they end with the test, whatever it raises, and with the process that runs it."""

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from smalti.up.command import guarded

LIMIT = 120.0
"""Seconds that a process of a test may take."""


@contextmanager
def started(command: Sequence[str | Path], **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """Runs a command while the block runs; then kills it, with everything in its process group.

    Args:
        command: the program and its arguments.
        options: of `subprocess.Popen`.
    """
    process = subprocess.Popen(guarded(command), start_new_session=True, **options)
    try:
        yield process
    finally:
        kill(process)


def kill(process: "subprocess.Popen[Any] | psutil.Popen") -> None:
    """Kills a process that was started in its own session, with everything in its process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def run_at_terminal(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    on_output: Callable[[bytes], None] = lambda shown: None,
    standard_error: bool = True,
) -> tuple[int, str]:
    """Runs a command at a pseudo-terminal; returns its exit status and what the terminal shows.

    Args:
        command: the program and its arguments.
        environment: variables in addition to those of this process.
        on_output: called with the whole output each time there is more.
        standard_error: whether standard error goes to the terminal too; otherwise it is discarded.

    Raises:
        TimeoutError: the command takes longer than `LIMIT`.
    """
    controller, terminal = os.openpty()
    shown, deadline = b"", time.monotonic() + LIMIT
    options = {"stdin": terminal, "stdout": terminal, "env": {**os.environ, **environment}}
    try:
        with started(
            command, stderr=terminal if standard_error else subprocess.DEVNULL, **options
        ) as process:
            os.close(terminal)
            while True:
                if not select.select([controller], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    raise TimeoutError(f"{command} runs for more than {LIMIT:g} s and shows {shown!r}")
                try:
                    shown += os.read(controller, 65536)
                except OSError:  # Linux reports the closed terminal as an error.
                    break
                on_output(shown)
            return process.wait(LIMIT), shown.decode(errors="replace")
    finally:
        os.close(controller)
