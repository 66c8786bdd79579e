"""Which work is convicted of the crashes of workers, and which is not."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from harness.queue import HARMLESS_WARNINGS, QueueHarness, events, task
from smalti.errors import EngineFailedError, RequestFailedError
from smalti.messages import Failed, FailureReason, Message, Stage
from smalti.queue import Delivery, Outcome
from smalti.queue.crashes.journal import Crash, WorkJournal
from smalti.queue.crashes.poison import PoisonRecords, work_id
from smalti.storage import MemoryStore

pytestmark = [pytest.mark.filterwarnings(each) for each in HARMLESS_WARNINGS]

LIMIT = 3
_KILLED = """
import os, signal, sys
from pathlib import Path
from smalti.queue.crashes.journal import WorkJournal
journal = WorkJournal(Path(sys.argv[1]), "encode")
journal.begin("a-rather-long-job-that-ends", "1")
journal.begin("j1", "1")
journal.begin("j1", "2")
journal.begin("j2", "3")
journal.end("a-rather-long-job-that-ends", "1")
journal.end("j1", "2")
os.kill(os.getpid(), signal.SIGKILL)
"""


def crashes(journal: WorkJournal) -> list[Crash]:
    found: list[Crash] = []
    journal.take_crashes(found.append)
    return found


def test_next_worker_knows_what_a_killed_one_was_doing(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _KILLED, tmp_path], check=False)
    other, living, journal = (WorkJournal(tmp_path, scope) for scope in ("rank", "encode", "encode"))
    living.begin("j3", "4")
    assert crashes(other) == []

    def fail(crash: Crash) -> None:
        raise OSError("the store is away")

    with pytest.raises(OSError, match="away"):
        journal.take_crashes(fail)
    assert crashes(journal) == [{"j1": {"1"}, "j2": {"3"}}]
    assert crashes(journal) == []


def test_worker_that_stops_leaves_only_what_its_engine_failed_over(tmp_path: Path) -> None:
    journal, successor = WorkJournal(tmp_path, "encode"), WorkJournal(tmp_path, "encode")
    journal.begin("j1", "1")
    journal.close()
    assert crashes(successor) == []
    journal = WorkJournal(tmp_path, "encode")
    journal.begin("j1", "1")
    journal.begin("j2", "1")
    journal.crash("j2", "1")
    journal.close()
    assert crashes(successor) == [{"j2": {"1"}}]


def test_journal_without_a_folder_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    journal = WorkJournal(tmp_path / "file" / "workers", "encode")
    journal.begin("j1", "1")
    assert crashes(journal) == []
    journal.close()


def test_job_over_which_workers_crash_alone_is_convicted_and_its_neighbour_is_not() -> None:
    store = MemoryStore()
    records = PoisonRecords(store, Stage.ENCODE)
    guilty, innocent = task("guilty"), task("innocent")
    for message in (guilty, innocent):
        records.add(message.job, {work_id(message)}, alone=False)
        assert records.load(message.job).suspects(work_id(message))
    records.begin_alone(innocent, 1)
    assert not records.load("innocent").convicts(LIMIT)
    records.end_alone(innocent, cleared=True)
    assert not records.load("innocent").crashes
    for _ in range(2):
        assert not records.load("guilty").convicts(LIMIT)
        records.begin_alone(guilty, 1)
    assert records.load("guilty").convicts(LIMIT)


def test_work_that_was_sent_again_before_it_was_convicted_does_not_run(queue_harness: QueueHarness) -> None:
    store = MemoryStore()
    records, first = PoisonRecords(store, Stage.ENCODE), task("guilty", lease=1)
    records.add("guilty", {work_id(first)}, alone=False)
    for _ in range(LIMIT - 1):
        records.begin_alone(first, 1)
    queue_harness.work(store=store)
    for lease in (1, 2):
        queue_harness.publisher.publish(task("guilty", lease=lease))
        queue_harness.wait_for(Outcome.DEAD, lease)
    assert queue_harness.begun == []
    failed = events(queue_harness.settings)
    assert [(each.lease, each.reason) for each in failed if isinstance(each, Failed)] == [
        (1, FailureReason.POISON),
        (2, FailureReason.POISON),
    ]


def test_other_work_of_a_suspect_job_runs_alone_until_some_has_ended() -> None:
    records = PoisonRecords(MemoryStore(), Stage.ENCODE)
    message, other = task("j1"), "another chunk"
    records.add("j1", {work_id(message), "a third"}, alone=False)
    assert records.load("j1").suspects(other)
    records.begin_alone(message, 1)
    records.end_alone(message, cleared=False)  # It was given back.
    assert records.load("j1").suspects(other)
    records.begin_alone(message, 1)
    records.end_alone(message, cleared=True)
    assert not records.load("j1").suspects(other)
    assert records.load("j1").suspects("a third")
    records.add("j1", {"a third"}, alone=True)
    assert records.load("j1").suspects(other)
    assert records.load("j1").crashes == 2


def test_message_over_which_an_engine_fails_is_poison_after_three_attempts(
    queue_harness: QueueHarness,
) -> None:
    def handle(delivery: Delivery) -> Iterable[Message]:
        raise RequestFailedError("the engine fails over this request, and over no other")

    queue_harness.work(handle)
    queue_harness.publisher.publish(task("guilty"))
    queue_harness.wait_for(Outcome.DEAD)
    assert queue_harness.begun == ["guilty"] * 3
    (failed,) = events(queue_harness.settings)
    assert isinstance(failed, Failed)
    assert failed.reason is FailureReason.POISON
    assert "over no other" in failed.detail


def test_engine_that_stops_costs_no_attempt(queue_harness: QueueHarness) -> None:
    attempts: list[int] = []

    def handle(delivery: Delivery) -> Iterable[Message]:
        attempts.append(delivery.message.attempt)
        if len(attempts) <= 6:  # More often than a message may be tried.
            raise EngineFailedError("the engine has stopped")
        return []

    queue_harness.work(handle)
    queue_harness.publisher.publish(task("innocent"))
    queue_harness.wait_for(Outcome.DONE)
    assert attempts == [1] * 7
    assert queue_harness.outcomes[Outcome.REDELIVERED] >= 6
