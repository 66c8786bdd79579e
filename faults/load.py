"""Jobs that are submitted again and again while something happens to the system."""

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from faults.matrix import Trial
from harness.meanwhile import meanwhile

INTERVAL_SECONDS = 0.2
MAX_SECONDS = 60.0
"""Time for which a client goes on with a call, on a busy machine."""


class Load:
    """What a load has done so far."""

    def __init__(self) -> None:
        self.slowest = 0.0
        """Seconds that the slowest call took, with all its tries."""
        self.during = ""
        """What happens now; a part of the prompts."""


@contextmanager
def under_load(
    trial: Trial, about: str, *, interval: float = INTERVAL_SECONDS, **asked: Any
) -> Iterator[Load]:
    """Submits a job to each gateway in turn while the block runs, as a client does that is patient.

    Args:
        trial: the row.
        about: the beginning of the prompts.
        interval: seconds between two jobs.
        asked: further arguments of the jobs.
    """
    load = Load()

    def submit(over: threading.Event) -> None:
        with trial.system.clients(attempts=4, retry_seconds=MAX_SECONDS) as clients:
            for number in itertools.count():
                began = time.monotonic()
                client = clients[number % len(clients)]
                trial.account.submit(f"{about} {load.during} {number}", seed=number, client=client, **asked)
                load.slowest = max(load.slowest, time.monotonic() - began)
                if over.wait(interval):
                    return

    with meanwhile(submit):
        yield load
