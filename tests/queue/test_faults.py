"""Delivery guarantees when workers and brokers fail, on real brokers."""

import contextlib
import itertools
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from harness.queue import (
    HARMLESS_WARNINGS,
    QueueHarness,
    clear,
    dead,
    events,
    gather,
    patient,
    read_all,
    settings_for,
    task,
)
from harness.queue_process import WorkerProcess, crash_until_convicted
from harness.servers import RabbitMQServer, Server
from harness.waiting import WAIT, wait_until
from smalti.errors import BrokerUnavailableError
from smalti.messages import (
    Message,
    Stage,
    parse,
)
from smalti.queue import BrokerPublisher, BrokerSettings, Delivery, Outcome, celery_application
from smalti.storage import JobKeys, LocalStore
from tests.queue.conftest import mostly_on_valkey

pytestmark = [pytest.mark.filterwarnings(each) for each in HARMLESS_WARNINGS]


@mostly_on_valkey
def test_publishing_times_out_when_the_broker_is_away(broker: Server) -> None:
    publisher = BrokerPublisher(settings_for(broker, timeout=2.0))
    publisher.publish(task("before"), timeout=WAIT)
    broker.pause()
    try:
        for timeout in (0.5, 2.0):
            began = time.monotonic()
            # The connection may find out just before the publisher.
            with pytest.raises(
                BrokerUnavailableError,
                match=f"did not confirm a message within {timeout:g} s|Timeout|timed out",
            ):
                publisher.publish(task("paused"), timeout=timeout)
            assert time.monotonic() - began < timeout + 5
        assert all(publisher.offer(task("offered")) for _ in range(60))
        assert not all(publisher.offer(task("offered")) for _ in range(60))
    finally:
        broker.resume()
    publisher.publish(task("after"), timeout=WAIT)
    broker.kill()
    began = time.monotonic()
    with pytest.raises(BrokerUnavailableError):
        publisher.publish(task("down"))
    assert time.monotonic() - began < publisher.settings.timeout + 5
    broker.start()
    publisher.publish(task("again"), timeout=WAIT)
    publisher.close()
    with pytest.raises(BrokerUnavailableError, match="the publisher is closed"):
        publisher.publish(task("down"))
    assert not publisher.offer(task("down"))
    found = {parse(text).job for text, _ in read_all(publisher.settings, "smalti.encode.interactive")}
    assert {"before", "after", "again"} <= found
    assert "down" not in found


@mostly_on_valkey
def test_no_message_is_lost_when_the_broker_crashes_or_hangs(
    queue_harness: QueueHarness, broker: Server
) -> None:
    jobs = itertools.count()
    accepted: set[str] = set()
    finished: set[str] = set()

    def handle(delivery: Delivery) -> Iterable[Message]:
        time.sleep(0.05)
        finished.add(delivery.message.job)
        return [delivery.message.done()]  # type: ignore[operator, union-attr]

    def send(count: int) -> None:
        for _ in range(count):
            message = task(f"j{next(jobs)}")
            with contextlib.suppress(BrokerUnavailableError):
                queue_harness.publisher.publish(message)
                accepted.add(message.job)

    concurrency = 2
    consumer = queue_harness.work(handle, concurrency=concurrency)
    send(20)
    broker.kill()
    send(1)
    broker.start()
    send(20)
    broker.pause()
    time.sleep(queue_harness.settings.timeout + 1)
    broker.resume()
    send(20)
    # Valkey may lose what is being taken while it is killed; then the sender sends it again, as the gateway does.
    taken = 0 if isinstance(broker, RabbitMQServer) else concurrency
    wait_until(lambda: len(accepted - finished) <= taken)
    for job in accepted - finished:
        queue_harness.publisher.publish(task(job))
    wait_until(lambda: accepted <= finished)
    assert len(accepted) >= 60 - 2
    assert consumer.alive
    gather(
        lambda: [event.job for event in events(queue_harness.settings)], lambda told: accepted <= set(told)
    )
    assert dead(queue_harness.settings) == []


def test_deleted_queue_is_declared_again(broker: Server) -> None:
    settings = settings_for(broker)
    publisher = BrokerPublisher(settings)
    publisher.publish_text(Stage.RANK, "smalti.rank.batch", "before")
    with celery_application(patient(settings)).connection_for_write() as connection:
        connection.channel().queue_purge("smalti.rank.batch")  # In Valkey an empty queue does not exist.
        connection.channel().queue_delete("smalti.rank.batch")
    publisher.publish_text(Stage.RANK, "smalti.rank.batch", "after", timeout=WAIT)
    publisher.close()
    assert [text for text, _ in read_all(settings, "smalti.rank.batch")] == ["after"]


def leave_restore_lock(settings: BrokerSettings) -> None:
    """Leaves behind the lock of a worker that died while it restored messages; Valkey only."""
    with celery_application(settings).connection_for_write() as connection:
        channel = connection.channel()
        if settings.url.get_secret_value().startswith("redis"):
            lock = channel.client.lock(channel.unacked_mutex_key, timeout=channel.unacked_mutex_expire)
            assert lock.acquire(blocking=False)


def test_crash_before_the_acknowledgement_loses_nothing(queue_harness: QueueHarness, tmp_path: Path) -> None:
    queue_harness.publisher.publish(task("fatal", "die after"))
    with WorkerProcess(queue_harness.settings, tmp_path) as worker:
        worker.process.wait(WAIT)
    leave_restore_lock(queue_harness.settings)
    assert worker.process.returncode == -9
    assert "begin fatal" in worker.said
    told = [event.job for event in events(queue_harness.settings)]
    assert told == ["fatal"]  # The event was sent before the crash.
    queue_harness.work()
    queue_harness.wait_for(Outcome.DONE)
    assert queue_harness.outcomes[Outcome.REDELIVERED] == 1
    assert queue_harness.begun == ["fatal"]
    assert [event.job for event in events(queue_harness.settings)] == ["fatal"]


@pytest.mark.slow
@mostly_on_valkey
def test_poison_message_is_dead_lettered_and_its_neighbours_are_done(broker: Server, tmp_path: Path) -> None:
    settings = settings_for(broker, deliveries=3)
    clear(settings)
    publisher = BrokerPublisher(settings)
    neighbours = {f"n{number}" for number in range(6)}
    publisher.publish(task("poison", "die"))
    for job in sorted(neighbours):
        publisher.publish(task(job, "sleep 1"))
    verdict = crash_until_convicted(settings, tmp_path, neighbours)
    assert verdict.crashes == settings.deliveries
    assert [(event.job, event.reason) for event in verdict.failed] == [("poison", "poison")]
    assert verdict.buried == ["poison"]
    # What was convicted stays so, and nothing is known of the neighbours.
    kept = [info.key for info in LocalStore(tmp_path).objects()]
    assert kept == [JobKeys("poison").poison_record("encode")]
    publisher.close()


@mostly_on_valkey
def test_worker_drains_on_sigterm(queue_harness: QueueHarness, tmp_path: Path) -> None:
    for number in range(8):
        queue_harness.publisher.publish(task(f"j{number}", "sleep 0.5"))
    with WorkerProcess(queue_harness.settings, tmp_path) as worker:
        wait_until(lambda: any(line.startswith("begin") for line in worker.said))
        worker.process.terminate()
        assert worker.process.wait(WAIT) == 0
    begun = {line.split()[1] for line in worker.said if line.startswith("begin")}
    done = {line.split()[1] for line in worker.said if line.startswith("done")}
    assert begun == done
    waiting = [parse(text).job for text, _ in read_all(queue_harness.settings, "smalti.encode.interactive")]
    assert sorted([*done, *waiting]) == [f"j{number}" for number in range(8)]
