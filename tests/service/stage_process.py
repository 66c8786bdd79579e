"""A service without an engine, for tests of the service process: `python stage_process.py`.

The prompt selects what a job does: `sleep N` takes N seconds, `hang` never ends, and `die` stops the background task.
"""

import sys
import threading
import time
from collections.abc import Iterable

from smalti.messages import EncodeTask, Message, Stage
from smalti.queue import Delivery
from smalti.service import Process, Service, run
from smalti.service.compute import ComputeThread
from smalti.service.serving import Serving

SERVING = Serving(
    stage=Stage.ENCODE,
    key="a1b2c3d4e5f6",
    model="none",
    revision="sha256:0",
    device="cpu",
    card="CgYKBG5vbmU=",
    parts={Stage.DECODE: "0d0e0c0d0e00"},
)


class BackgroundTask:
    healthy = True

    async def start(self) -> None:
        """Does nothing."""

    async def stop(self, grace: float) -> None:
        """Does nothing."""


def build(process: Process) -> Service:
    background_task = BackgroundTask()

    def handle(delivery: Delivery) -> Iterable[Message]:
        task = delivery.message
        assert isinstance(task, EncodeTask)
        process.store.put(f"begun/{task.job}", b"")
        if task.prompt == "hang":
            threading.Event().wait()
        if task.prompt == "die":
            background_task.healthy = False
        if task.prompt.startswith("sleep"):
            time.sleep(float(task.prompt.split()[1]))
        return [task.done()]

    return Service(
        register=lambda server: None,
        handler=handle,
        concurrency=2,
        engine=ComputeThread(max_permits=1, stall_seconds=60, check=lambda: None),
        serving=SERVING,
        background_tasks=[background_task],
    )


if __name__ == "__main__":
    sys.exit(run("encoder", Stage.ENCODE, build))
