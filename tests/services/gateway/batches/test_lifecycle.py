"""What may happen to a batch in each state, how it is finished, and what is deleted when."""

import tempfile
from pathlib import Path

import pytest
from sqlalchemy import func, select

from harness.batches import BatchHarness
from harness.gateway import MakeGateway
from harness.killing import Killed, killed_at
from harness.receiver import Receiver
from smalti.batches import BatchKeys, BatchSummary
from smalti.errors import BatchNotFoundError, UnavailableError, WrongStateError
from smalti.messages import FailureReason, Stage
from smalti.services.gateway.batches import rate_of, seconds_left
from smalti.services.gateway.database.tables import Batch, Delivery, Shard
from smalti.services.gateway.jobs.lifecycle import LATE_SECONDS
from smalti.services.gateway.webhooks import WebhookRepository
from smalti.storage import JobKeys, MemoryStore

DAY = 24 * 3600.0
STATES = ("planning", "running", "paused", "finishing")


def in_state(batches: BatchHarness, state: str) -> str:
    """Returns a batch of 10 prompts in a state; in all but the first its first shard is drawn."""
    batch = batches.create(10)
    if state == "planning":
        return batch
    batches.room.plan()
    tasks = batches.send()
    batches.handle(batches.stages.draw(tasks[0]))
    if state == "paused":
        batches.room.repository.pause(batch)
    if state == "finishing":
        batches.handle(*(batches.stages.draw(task) for task in tasks[1:]))
    assert batches.state(batch) == state
    return batch


def summary_of(batches: BatchHarness, batch: str) -> BatchSummary:
    """Returns the summary of a batch."""
    key = f"{BatchKeys(batch).prefix}summary.json"
    return BatchSummary.parse(key, batches.store.get(key))


def count(batches: BatchHarness, table: type) -> int:
    """Returns the number of rows of a table."""
    with batches.gateway.gateway.context.database.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


@pytest.mark.parametrize("state", STATES)
def test_pause_and_resume_in_every_state(batches: BatchHarness, state: str) -> None:
    batch = in_state(batches, state)
    repository = batches.room.repository
    paused = repository.pause(batch).batch
    assert paused.state == ("finishing" if state == "finishing" else "paused")
    assert repository.pause(batch).batch.version == paused.version
    # Planning goes on, what is in the queues is finished, and nothing else is sent.
    batches.room.plan()
    assert batches.send() == []
    repository.resume(batch)
    assert repository.resume(batch).batch.state in ("running", "finishing")
    if state != "finishing":
        batches.gateway.clock.advance(600 * 16 + 1)
        batches.greet()
    batches.run()
    assert batches.state(batch) == "succeeded"
    assert [row["row"] for row in batches.rows(batch)] == list(range(10))
    for change in (repository.pause, repository.resume):
        with pytest.raises(WrongStateError, match="has ended"):
            change(batch)


def test_paused_batch_whose_shards_are_all_sent_is_finished(batches: BatchHarness) -> None:
    batch = batches.planned(10)
    tasks = batches.send()
    batches.room.repository.pause(batch)
    batches.handle(*(batches.stages.draw(task) for task in tasks))
    batches.room.finish()
    assert batches.state(batch) == "succeeded"


@pytest.mark.parametrize("state", STATES[:3])
def test_cancelling_keeps_what_is_drawn(batches: BatchHarness, state: str) -> None:
    batch = in_state(batches, state)
    shown = batches.room.repository.cancel(batch).batch
    assert shown.state == ("cancelled" if state == "planning" else "finishing")
    batches.room.plan()
    assert batches.send() == []
    batches.room.finish()
    assert batches.state(batch) == "cancelled"
    assert batches.room.repository.cancel(batch).batch.state == "cancelled"
    batches.room.clean()
    names = list(batches.files(batch))
    if state == "planning":
        assert names == []
        return
    assert "00000.tar" in names
    assert "_SUCCESS" not in names
    summary = summary_of(batches, batch)
    assert (summary.state, summary.counts.drawn) == ("cancelled", 4)
    assert len(batches.rows(batch)) == summary.counts.prompts
    # Its other shards are told to the stages, and deleted.
    batches.gateway.gateway.run_store_tasks()
    assert all(key.endswith("/cancelled.json") for key in batches.keys(f"jobs/{batch}-"))
    assert count(batches, Shard) == 0


def test_results_that_come_after_the_cancellation_do_not_count(batches: BatchHarness) -> None:
    batch = batches.planned(10)
    first, second, _ = batches.send()
    batches.handle(batches.stages.draw(first))
    batches.room.repository.cancel(batch)
    batches.handle(batches.stages.draw(second), batches.stages.progress(second, 1))
    batches.handle(second.failed(FailureReason.CANCELLED, "cancelled"))
    batches.room.finish()
    assert [row["row"] for row in batches.rows(batch)] == [0, 1, 2, 3]


@pytest.mark.parametrize("state", STATES[:3])
def test_batch_expires(batches: BatchHarness, state: str) -> None:
    batch = in_state(batches, state)
    batches.pass_time(100_001)
    batches.room.finish()
    assert batches.state(batch) == "expired"
    if state != "planning":
        assert summary_of(batches, batch).state == "expired"


@pytest.mark.parametrize("state", [*STATES, "succeeded"])
def test_deletion_leaves_nothing(batches: BatchHarness, state: str) -> None:
    batch = in_state(batches, "finishing" if state == "succeeded" else state)
    if state == "succeeded":
        batches.room.finish()
    batches.room.repository.delete(batch)
    with pytest.raises(BatchNotFoundError):
        batches.get(batch)
    assert batches.room.repository.versions([batch]) == {}
    batches.room.plan()
    batches.room.finish()
    batches.room.clean()
    batches.gateway.gateway.run_store_tasks()
    assert batches.keys(f"batches/{batch}") == []
    # A stage may still write.
    batches.store.put(f"{JobKeys(f'{batch}-00001').folder}shard/tokens.safetensors", b"late")
    batches.pass_time(2 * DAY)
    assert batches.keys(f"jobs/{batch}-") == []
    assert (count(batches, Batch), count(batches, Shard)) == (0, 0)


def test_batch_is_deleted_when_its_retention_is_over(batches: BatchHarness) -> None:
    batch = batches.planned(10)
    batches.run()
    batches.room.clean()
    assert count(batches, Shard) == 0  # Its manifest has everything.
    assert batches.keys(f"batches/{batch}/shards/") == batches.keys(f"batches/{batch}/parts/") == []
    files = batches.files(batch)
    batches.pass_time(4000)
    assert batches.files(batch) == files
    batches.pass_time(1001)
    assert batches.files(batch) == {}
    with pytest.raises(BatchNotFoundError):
        batches.get(batch)


@pytest.mark.parametrize("point", ["gateway.before-manifest", "gateway.after-manifest"])
def test_finisher_that_is_killed_gives_the_same_files(batches: BatchHarness, point: str) -> None:
    batch = in_state(batches, "finishing")
    with pytest.raises(Killed), killed_at(point):
        batches.room.finish()
    before = batches.files(batch)
    batches.pass_time(31)
    batches.room.finish()
    assert batches.state(batch) == "succeeded"
    files = batches.files(batch)
    assert {name: files[name] for name in before} == before
    undisturbed = in_state(batches, "finishing")
    batches.room.finish()
    assert batches.files(undisturbed) == files


def test_shard_whose_results_are_lost_is_drawn_again(batches: BatchHarness) -> None:
    batch = in_state(batches, "finishing")
    lost = batches.keys(f"batches/{batch}/parts/")[1]
    batches.store.delete(lost)
    batches.room.finish()
    assert batches.state(batch) == "running"
    batches.run()
    assert batches.state(batch) == "succeeded"
    assert [row["row"] for row in batches.rows(batch)] == list(range(10))


def test_batch_that_cannot_be_finished_fails_and_does_not_hold_up_others(batches: BatchHarness) -> None:
    broken, fine = in_state(batches, "finishing"), in_state(batches, "finishing")
    database = batches.gateway.gateway.context.database
    with database.write() as session:
        session.get_one(Batch, broken).prompts = 11  # A row has no result.
    batches.room.finish()
    assert (batches.state(broken), batches.state(fine)) == ("failed", "succeeded")
    assert "_SUCCESS" not in batches.files(broken)


@pytest.mark.parametrize("state", ["planning", "finishing"])
def test_full_folder_for_temporary_files_is_waited_out(
    batches: BatchHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    batch = in_state(batches, state)
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
        with pytest.raises(UnavailableError, match="folder for temporary files"):
            batches.room.plan() if state == "planning" else batches.room.finish()
    assert batches.state(batch) == state
    batches.gateway.clock.advance(60)
    batches.greet()
    batches.room.plan()
    batches.run()
    assert batches.state(batch) == "succeeded"


def test_batch_of_a_newer_version_is_left_to_others(batches: BatchHarness) -> None:
    database = batches.gateway.gateway.context.database
    newer = in_state(batches, "finishing"), in_state(batches, "planning")
    for batch in newer:
        with database.write() as session:
            session.get_one(Batch, batch).parameters = {"input": 7}
    own = in_state(batches, "finishing")
    batches.room.finish()
    batches.room.plan()
    assert [batches.state(batch) for batch in (*newer, own)] == ["finishing", "planning", "succeeded"]
    with database.read() as session:
        assert session.get_one(Batch, newer[0]).owned_until is None


def test_damaged_summary_does_not_hold_up_the_cleaning(batches: BatchHarness) -> None:
    damaged, fine = in_state(batches, "finishing"), in_state(batches, "finishing")
    batches.room.finish()
    batches.store.put(f"{BatchKeys(damaged).prefix}summary.json", b"{}")
    batches.room.clean()
    for batch in (damaged, fine):
        assert batches.keys(f"{BatchKeys(batch).folder}parts/") == []


def test_finished_shards_leave_no_intermediate_objects(batches: BatchHarness) -> None:
    batch = batches.planned(10)
    tasks = batches.send()
    for task in tasks:
        batches.store.put(f"{JobKeys(task.job).folder}shard/tokens.safetensors", b"tokens")
        batches.handle(batches.stages.reached(task, Stage.GENERATE), batches.stages.draw(task))
    batches.gateway.gateway.run_store_tasks()
    assert batches.keys("jobs/") == [JobKeys(task.job).cancelled for task in tasks]
    batches.room.finish()
    assert batches.state(batch) == "succeeded"
    batches.pass_time(1)
    assert len(batches.keys("jobs/")) == len(tasks)
    batches.pass_time(DAY + LATE_SECONDS)
    assert batches.keys("jobs/") == []


class OrderedStore(MemoryStore):
    """Notes the records of stages that were deleted while nothing said that their shards need no more work."""

    def __init__(self) -> None:
        """Nothing was deleted."""
        super().__init__()
        self.too_early: list[str] = []

    def delete(self, *keys: str) -> None:
        """Deletes objects."""
        records = [key for key in keys if "/outputs/" in key]
        self.too_early += [key for key in records if JobKeys(key.split("/")[1]).cancelled not in self.entries]
        super().delete(*keys)


@pytest.mark.parametrize("swept", [True, False], ids=["in order", "batch ends first"])
@pytest.mark.parametrize("end", ["drawn", "halved", "cancelled"])
def test_markers_are_written_before_the_records_are_deleted(
    make_gateway: MakeGateway, end: str, swept: bool
) -> None:
    """Under the first lease too: a worker may have a copy of the message, and does not find the record any more."""
    store = OrderedStore()
    batches = BatchHarness(make_gateway(write=3, store=store))
    batch = batches.planned(4)
    (task,) = batches.send()
    keys = JobKeys(task.job)
    store.put(keys.outputs(Stage.RANK, "shard"), b"{}")
    if end == "drawn":
        batches.handle(batches.stages.draw(task))
    elif end == "halved":
        batches.handle(task.failed(FailureReason.POISON, "its worker died 3 times"))
    else:
        batches.room.repository.cancel(batch)
    if swept:
        batches.gateway.gateway.run_store_tasks()
    batches.run()
    batches.room.clean()
    assert keys.cancelled in store.entries
    assert keys.outputs(Stage.RANK, "shard") not in store.entries
    assert store.too_early == []


def test_rate_and_time_left_follow_from_the_last_minutes(batches: BatchHarness) -> None:
    batch = batches.planned(40)
    for _ in range(3):
        for task in batches.send()[:1]:
            batches.gateway.clock.advance(20)
            batches.greet()
            batches.handle(batches.stages.draw(task))
    snapshot = batches.get(batch)
    assert rate_of(snapshot.batch, snapshot.now) == pytest.approx(4 / 20, rel=0.01)
    assert seconds_left(snapshot.batch, snapshot.now) == pytest.approx(28 / 0.2, rel=0.01)


def test_estimate_follows_from_earlier_batches(batches: BatchHarness) -> None:
    first = batches.planned(10)
    for task in batches.send():
        batches.gateway.clock.advance(10)
        batches.greet()
        batches.handle(batches.stages.draw(task))
    batches.room.finish()
    done = batches.get(first).batch
    estimate = batches.get(batches.planned(20, validate_only=True)).estimate
    assert estimate is not None
    assert (estimate.candidates, estimate.pictures) == (60, 40)
    assert estimate.size == 2 * done.size
    assert estimate.seconds == pytest.approx(60.0, rel=0.01)


@pytest.mark.usefixtures("private")
def test_webhook_of_the_tenant_is_told(batches: BatchHarness, receiver: Receiver) -> None:
    database = batches.gateway.gateway.context.database
    WebhookRepository(database, batches.gateway.clock).set("default", url=receiver.url)
    batch = batches.planned(10)
    batches.run()
    with database.read() as session:
        (delivery,) = session.scalars(select(Delivery)).all()
    assert delivery.subject == batch
    assert '"type":"batch.succeeded"' in delivery.body
    assert '"prompts_drawn":10' in delivery.body
