"""A service without an engine, for tests of the process: `python stage_process.py`.

What a job asks for is in its prompt: `sleep N` takes so many seconds, `hang` never ends, `die` lets the companion die.
"""

import sys
import threading
import time
from collections.abc import Iterable

from smalti.messages import EncodeTask, Message, Stage
from smalti.queue import Delivery
from smalti.service import Process, Service, run


class BackgroundTask:
    healthy = True

    async def start(self) -> None:
        """Nothing has to be started."""

    async def stop(self, grace: float) -> None:
        """Nothing runs."""


def build(process: Process) -> Service:
    companion = BackgroundTask()

    def handle(delivery: Delivery) -> Iterable[Message]:
        task = delivery.message
        assert isinstance(task, EncodeTask)
        process.store.put(f"begun/{task.job}", b"")
        if task.prompt == "hang":
            threading.Event().wait()
        if task.prompt == "die":
            companion.healthy = False
        if task.prompt.startswith("sleep"):
            time.sleep(float(task.prompt.split()[1]))
        return [task.done()]

    return Service(
        register=lambda server: None,
        handler=handle,
        concurrency=2,
        background_tasks=[companion],
    )


if __name__ == "__main__":
    sys.exit(run("encoder", Stage.ENCODE, build))
