"""A worker of the encoder's queues in a process of its own, which a test kills."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from harness.paths import ROOT
from harness.queue import dead, events
from harness.waiting import WAIT, wait_until
from smalti.messages import Failed, parse
from smalti.queue import BrokerSettings
from smalti.up.command import guarded

WORKER: Final = ROOT / "tests" / "queue" / "queue_worker.py"


class WorkerProcess:
    """A worker in its own process, and its output; killed when the block ends."""

    def __init__(self, settings: BrokerSettings, folder: Path) -> None:
        values = {
            **settings.model_dump(mode="json", exclude_none=True),
            "url": settings.url.get_secret_value(),
        }
        self.process = subprocess.Popen(
            guarded([sys.executable, WORKER, json.dumps(values), folder]), stdout=subprocess.PIPE, text=True
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            self.said.extend(line.strip() for line in self.process.stdout)

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()


@dataclass
class Verdict:
    """What has become of a message that crashes its workers."""

    failed: list[Failed] = field(default_factory=list)
    """The events of failed work."""
    buried: list[str] = field(default_factory=list)
    """The jobs of dead letters."""
    crashes: int = 0
    """Workers that were killed."""


def crash_until_convicted(settings: BrokerSettings, folder: Path, others: Set[str]) -> Verdict:
    """Runs one worker after the other until a message is given up and kept, and all other jobs are done.

    Args:
        settings: the broker.
        folder: the folder of the workers' store.
        others: the other jobs.
    """
    verdict, done = Verdict(), set[str]()

    def settled() -> bool:
        for event in events(settings):
            if isinstance(event, Failed):
                verdict.failed.append(event)
            else:
                done.add(event.job)
        verdict.buried.extend(parse(text).job for text, _ in dead(settings))
        return bool(verdict.failed and verdict.buried) and others <= done

    deadline = time.monotonic() + 3 * WAIT
    while not settled():
        assert time.monotonic() < deadline
        with WorkerProcess(settings, folder) as worker:
            wait_until(lambda: worker.process.poll() is not None or settled(), 2 * WAIT)
            verdict.crashes += worker.process.poll() == -9
    return verdict
