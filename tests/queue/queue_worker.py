"""A worker process for the tests of the queue: `python queue_worker.py SETTINGS STORE`. It reports on stdout.

The prompt, or the batch of a shard, says what happens: `die` kills the process during the work, `die after` after the
events were sent and before the acknowledgement, `sleep N` takes N seconds (`sleep-N` of a batch).
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from smalti.messages import EncodeShardTask, EncodeTask, Message, Stage
from smalti.queue import BrokerPublisher, BrokerSettings, Delivery, consume
from smalti.storage import LocalStore


def say(*words: str) -> None:
    sys.stdout.write(" ".join(words) + "\n")  # One write, since many threads report.
    sys.stdout.flush()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def handle(delivery: Delivery) -> Iterator[Message]:
    task = delivery.message
    assert isinstance(task, EncodeTask | EncodeShardTask)
    prompt = task.prompt if isinstance(task, EncodeTask) else task.batch.replace("-", " ")
    say("begin", task.job)
    if prompt == "die":
        time.sleep(0.3)  # Until the worker has received neighbours too.
        die()
    if prompt.startswith("sleep"):
        time.sleep(float(prompt.split()[1]))
    yield task.done()
    if prompt == "die after":
        die()
    say("done", task.job)


def main() -> None:
    settings = BrokerSettings.model_validate_json(sys.argv[1])
    store = LocalStore(Path(sys.argv[2]))
    publisher = BrokerPublisher(settings)
    consumer = consume(
        Stage.ENCODE, handle, concurrency=4, publisher=publisher, store=store, settings=settings
    )
    signal.signal(signal.SIGTERM, lambda *_: consumer.stop())
    consumer.start()
    if consumer.wait_until_ready(30):
        say("ready")
    consumer.wait_until_ended()
    publisher.close()
    say("ended")


if __name__ == "__main__":
    main()
