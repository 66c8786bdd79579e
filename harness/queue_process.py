"""A worker of the encoder's queues in a process of its own, which a test kills."""

import json
import subprocess
import sys
import threading
from pathlib import Path

from harness.paths import ROOT
from smalti.queue import BrokerSettings
from smalti.up.command import guarded

WORKER = ROOT / "tests" / "queue" / "queue_worker.py"


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
