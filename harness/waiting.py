"""Waiting for a condition, with a time limit."""

import time
from collections.abc import Callable
from typing import Any

WAIT = 60.0
"""Time limit in seconds for anything that a test waits for, on a busy machine."""


def wait_until(
    condition: Callable[[], Any],
    seconds: float = WAIT,
    *,
    problem: str = "the condition was not met in time",
) -> None:
    """Waits for a condition; raises `AssertionError` with the problem if it is not met in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            raise AssertionError(problem)
        time.sleep(0.01)
