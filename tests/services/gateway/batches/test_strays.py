"""The output has no file that its manifest does not know, whatever the stages write late."""

from harness.batches import BatchHarness
from smalti.messages import Failed, FailureReason
from smalti.services.gateway.jobs.lifecycle import LATE_SECONDS


def test_pictures_of_a_shard_that_was_halved_are_not_in_the_output(batches: BatchHarness) -> None:
    batch = batches.planned(4)
    (task,) = batches.send()
    failed: Failed = task.failed(FailureReason.POISON, "its worker died 3 times")
    batches.handle(failed, batches.stages.draw(task))
    assert "00000.tar" in batches.files(batch)
    batches.run()
    assert sorted(batches.files(batch)) == [
        *("00000-0-2.tar", "00000-2-2.tar", "_SUCCESS", "manifest/00000.parquet", "summary.json")
    ]


def test_pictures_that_come_after_the_cancellation_are_not_in_the_output(batches: BatchHarness) -> None:
    batch = batches.planned(12, retention=10.0**6)
    first, second, third = batches.send()
    batches.handle(batches.stages.draw(first))
    batches.room.repository.cancel(batch)
    batches.handle(batches.stages.draw(second))
    batches.room.finish()
    assert batches.state(batch) == "cancelled"
    assert sorted(batches.files(batch)) == ["00000.tar", "manifest/00000.parquet", "summary.json"]
    assert [row["row"] for row in batches.rows(batch)] == [0, 1, 2, 3]
    batches.room.clean()
    batches.store.put(f"batches/{batch}/output/{third.range.name}.tar", b"late")
    batches.pass_time(24 * 3600 + LATE_SECONDS)
    assert sorted(batches.files(batch)) == ["00000.tar", "manifest/00000.parquet", "summary.json"]


def test_batch_of_which_everything_is_drawn_cannot_be_cancelled(batches: BatchHarness) -> None:
    batch = batches.planned(4)
    (task,) = batches.send()
    batches.handle(batches.stages.draw(task))
    assert batches.room.repository.cancel(batch).batch.state.value == "finishing"
    batches.room.finish()
    assert batches.state(batch) == "succeeded"
    assert "_SUCCESS" in batches.files(batch)
