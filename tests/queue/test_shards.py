"""Shards in the queues: they fill no thread that jobs need, and are found when they crash workers."""

import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from harness.queue import (
    HARMLESS_WARNINGS,
    QueueHarness,
    clear,
    read_all,
    settings_for,
    task,
)
from harness.queue_process import WorkerProcess, crash_until_convicted
from harness.servers import Server
from harness.waiting import WAIT, wait_until
from smalti.messages import (
    EncodeShardTask,
    Message,
    ShardRange,
    Stage,
    parse,
    shard_job,
    shard_key,
)
from smalti.parameters import Priority
from smalti.queue import BrokerPublisher, Delivery, GiveBackError, Outcome
from smalti.queue.crashes.poison import PoisonRecords
from smalti.storage import MemoryStore, ObjectRef
from tests.queue.conftest import mostly_on_valkey

pytestmark = [pytest.mark.filterwarnings(each) for each in HARMLESS_WARNINGS]


def shard_task(batch: str = "b1", number: int = 0) -> EncodeShardTask:
    part = ShardRange(number=number, count=256)
    return EncodeShardTask(
        job=shard_job(batch, part),
        expires=time.time() + 3600,
        model="tiny",
        revision="r",
        batch=batch,
        range=part,
        shard=ObjectRef(key=shard_key(batch, number), sha256="0" * 64),
    )


class BlockingShards:
    """A handler whose shards take until they are released; jobs take no time."""

    def __init__(self) -> None:
        """Nothing is released."""
        self.release = threading.Event()
        self.running: set[str] = set()
        self.most = 0
        self.done: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, delivery: Delivery) -> Iterable[Message]:
        """Handles a message."""
        message: Any = delivery.message
        if isinstance(message, EncodeShardTask):
            with self._lock:
                self.running.add(message.job)
                self.most = max(self.most, len(self.running))
            assert self.release.wait(WAIT)
            with self._lock:
                self.running.remove(message.job)
        self.done.add(message.job)
        return [message.done()]


@mostly_on_valkey
def test_jobs_do_not_wait_for_shards_that_fill_a_worker(queue_harness: QueueHarness, broker: Server) -> None:
    handler = BlockingShards()
    shards = {shard_job("b1", ShardRange(number=number, count=256)) for number in range(7)}
    for number in range(7):
        queue_harness.publisher.publish(shard_task(number=number))
    queue_harness.work(handler, concurrency=2)
    wait_until(lambda: len(handler.running) == 2)
    for number in range(12):
        queue_harness.publisher.publish(task(f"j{number}"))
    wait_until(lambda: len(handler.done) == 12)
    assert len(handler.running) == 2
    handler.release.set()
    wait_until(lambda: handler.done >= shards)
    assert handler.most == 2
    # What came before the broker knew that the worker was full went back once, and not again and again.
    assert queue_harness.outcomes[Outcome.GIVEN_BACK] <= 3 * len(shards)
    # Afterwards jobs of batches go on, and so do shards.
    queue_harness.publisher.publish(task("late", priority=Priority.BATCH))
    queue_harness.publisher.publish(shard_task(number=7))
    wait_until(lambda: {"late", shard_job("b1", ShardRange(number=7, count=256))} <= handler.done)


@mostly_on_valkey
def test_two_workers_share_shards(broker: Server, tmp_path: Path) -> None:
    settings = settings_for(broker)
    publisher = BrokerPublisher(settings)
    with WorkerProcess(settings, tmp_path) as one, WorkerProcess(settings, tmp_path) as other:
        workers = one, other
        wait_until(lambda: all("ready" in worker.said for worker in workers))
        for number in range(2):
            publisher.publish(shard_task("sleep-2", number))
        wait_until(lambda: all(any(line.startswith("begin") for line in each.said) for each in workers))
    publisher.close()


@pytest.mark.parametrize("broker", ["valkey"], indirect=True)
def test_shard_that_takes_longer_than_the_visibility_timeout_is_kept(broker: Server) -> None:
    harness = QueueHarness(settings_for(broker, visibility_timeout=1.0))
    try:
        handler = BlockingShards()
        harness.publisher.publish(shard_task())
        harness.work(handler)
        wait_until(lambda: handler.running)
        time.sleep(4.0)
        handler.release.set()
        harness.wait_for(Outcome.DONE)
        assert harness.outcomes == {Outcome.DONE: 1}
        assert len(harness.begun) == 1
    finally:
        harness.stop()


def test_shard_gives_way_to_work_that_must_run_alone(queue_harness: QueueHarness) -> None:
    store, began, release = MemoryStore(), threading.Event(), threading.Event()
    suspect = task("suspect")
    PoisonRecords(store, Stage.ENCODE).add("suspect", {"x"}, alone=False)
    alone: list[int] = []

    def handle(delivery: Delivery) -> Iterable[Message]:
        message: Any = delivery.message
        if isinstance(message, EncodeShardTask):
            began.set()
            while not release.is_set():
                if delivery.draining.wait(0.05):
                    raise GiveBackError("another message must run alone")
        else:
            assert queue_harness.consumer is not None
            alone.append(queue_harness.consumer.running)
            release.set()
        return [message.done()]

    queue_harness.publisher.publish(shard_task())
    queue_harness.work(handle, store=store)
    assert began.wait(WAIT)
    queue_harness.publisher.publish(suspect)
    queue_harness.wait_for(Outcome.DONE, 2)
    assert alone == [1]
    assert queue_harness.outcomes[Outcome.GIVEN_BACK] >= 1
    assert queue_harness.begun[-1] == shard_task().job


@pytest.mark.parametrize("broker", ["valkey"], indirect=True)
def test_shard_goes_back_when_the_worker_stops(queue_harness: QueueHarness) -> None:
    began = threading.Event()

    def handle(delivery: Delivery) -> Iterable[Message]:
        began.set()
        assert delivery.draining.wait(WAIT)
        raise GiveBackError("the worker stops")

    queue_harness.publisher.publish(shard_task())
    consumer = queue_harness.work(handle)
    assert began.wait(WAIT)
    assert consumer.stop(WAIT)
    [(text, headers)] = read_all(queue_harness.settings, "smalti.encode.batch")
    assert parse(text) == shard_task().model_copy(update={"expires": parse(text).expires})
    assert headers["smalti_shard"] == 1


@pytest.mark.slow
@mostly_on_valkey
def test_shard_that_crashes_its_workers_is_convicted_and_others_are_done(
    broker: Server, tmp_path: Path
) -> None:
    settings = settings_for(broker, deliveries=3)
    clear(settings)
    publisher = BrokerPublisher(settings)
    guilty = shard_task("die").job
    others = {shard_task("sleep-1", number).job for number in range(3)} | {"j1", "j2"}
    publisher.publish(shard_task("die"))
    for number in range(3):
        publisher.publish(shard_task("sleep-1", number))
    for job in ("j1", "j2"):
        publisher.publish(task(job, "sleep 1"))
    verdict = crash_until_convicted(settings, tmp_path, others)
    assert verdict.crashes == settings.deliveries
    assert [(event.job, event.reason, event.stage) for event in verdict.failed] == [
        (guilty, "poison", "encode")
    ]
    assert verdict.buried == [guilty]
    publisher.close()
