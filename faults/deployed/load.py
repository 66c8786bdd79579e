"""Jobs that are submitted again and again through the gateway, a few at a time."""

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from faults.accounting import Account, Submission
from faults.deployed.system import DeployedSystem
from harness.meanwhile import meanwhile
from harness.waiting import wait_until
from smalti.client import Client, has_ended
from smalti.errors import SmaltiError

PROMPTS: Final = (
    "a blue cat on a yellow background",
    "a red apple",
    "two green frogs",
    "a whale and a lemon",
)
SEEDS: Final = 3
CANDIDATES: Final = 2
ENLARGED: Final = 4
"""Of so many jobs one is enlarged, so that the refiner has work."""
INTERVAL_SECONDS: Final = 2.0
OPEN: Final = 6
RETRY_SECONDS: Final = 300.0
"""Time for which a client goes on with a call."""


@dataclass
class Load:
    """What a load has done so far."""

    ended: int = 0
    slowest: float = 0.0
    """Seconds from the call to the end of the job that took longest, as far as jobs have ended under load."""
    refused: int = 0
    open: dict[str, tuple[float, Submission]] = field(default_factory=dict)
    """When a job was submitted, and the job, by its id."""

    def wait_for(self, more: int, seconds: float = 600.0) -> None:
        """Waits until some more jobs have ended."""
        wanted = self.ended + more
        wait_until(
            lambda: self.ended >= wanted, seconds, problem=f"no {more} jobs more ended in {seconds:.0f} s"
        )


@contextmanager
def under_load(system: DeployedSystem, account: Account, *, limit: int = OPEN) -> Iterator[Load]:
    """Submits jobs while the block runs, as a patient client does, with at most `limit` that have not ended.

    Prompts and seeds repeat, so that few pictures have to be drawn for comparison.
    """
    load = Load()

    def work(over: threading.Event) -> None:
        with system.client(attempts=4, retry_seconds=RETRY_SECONDS) as client:
            for number in itertools.count():
                _look(client, load)
                if len(load.open) < limit:
                    _submit(client, account, load, number)
                if over.wait(INTERVAL_SECONDS):
                    return

    with meanwhile(work):
        yield load


def asked(number: int) -> dict[str, Any]:
    """Returns the arguments of a job of the load."""
    chosen = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number // len(PROMPTS) % SEEDS}
    more = {"upscale": 2} if number % ENLARGED == ENLARGED - 1 else {}
    return {**chosen, **more, "candidates": CANDIDATES}


def _submit(client: Client, account: Account, load: Load, number: int) -> None:
    began = time.monotonic()
    submission = account.submit(**asked(number), client=client)
    if submission.job:
        load.open[submission.job] = began, submission
    else:
        load.refused += 1


def _look(client: Client, load: Load) -> None:
    for name, (began, submission) in list(load.open.items()):
        with suppress(SmaltiError):
            job = client.get(name)
            if has_ended(job):
                submission.end = job
                load.slowest = max(load.slowest, time.monotonic() - began)
                load.ended += 1
                del load.open[name]
