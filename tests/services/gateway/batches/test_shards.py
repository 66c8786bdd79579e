"""Shards: which are sent and when, what the stages' events do, and shards that fail."""

import pytest

from harness.batches import BatchHarness
from harness.fleet import another_card, card_of, say_goodbye, say_hello
from harness.gateway import MakeGateway
from smalti.errors import BrokerUnavailableError
from smalti.messages import EncodeShardTask, Failed, FailureReason, Stage
from smalti.parameters import Priority
from smalti.services.gateway.database.tables import Batch
from smalti.services.gateway.identity import TenantRepository
from smalti.storage import JobKeys


def failed(task: EncodeShardTask, reason: FailureReason, detail: str = "it broke") -> Failed:
    """Returns the event of a stage that gives a shard up."""
    return task.failed(reason, detail)


def names(tasks: list[EncodeShardTask]) -> list[str]:
    """Returns which shards messages are for."""
    return [task.range.name for task in tasks]


def test_batch_is_drawn_to_its_manifest(batches: BatchHarness) -> None:
    batch = batches.planned(10)
    assert batches.state(batch) == "running"
    tasks = batches.send()
    assert names(tasks) == ["00000", "00001", "00002"]
    assert {task.priority for task in tasks} == {Priority.BATCH}
    assert [task.range.count for task in tasks] == [4, 4, 2]
    assert tasks[0].queue.endswith(".batch")
    for task in tasks:
        batches.handle(batches.stages.draw(task))
    assert batches.state(batch) == "finishing"
    batches.room.finish()
    row = batches.get(batch).batch
    assert (row.state, row.drawn, row.failed, row.pictures, row.shards_ended) == ("succeeded", 10, 0, 20, 3)
    assert row.candidates_generated == row.candidates == 30
    rows = batches.rows(batch)
    assert [each["row"] for each in rows] == list(range(10))
    assert sorted(batches.files(batch)) == [
        "00000.tar",
        "00001.tar",
        "00002.tar",
        "_SUCCESS",
        "manifest/00000.parquet",
        "summary.json",
    ]


def test_window_follows_the_generators(make_gateway: MakeGateway) -> None:
    batches = BatchHarness(make_gateway(write=3), generators=2)
    batches.planned(100)
    tasks = batches.send()
    assert len(tasks) == 6
    # What is generated makes room for the next; shards do not pile up behind the generators either.
    batches.handle(*(batches.stages.reached(task, Stage.GENERATE) for task in tasks))
    more = batches.send()
    assert len(more) == 6
    batches.handle(*(batches.stages.reached(task, Stage.GENERATE) for task in more))
    assert batches.send() == []
    batches.handle(batches.stages.draw(tasks[0]))
    assert names(batches.send()) == ["00012"]


def test_slots_of_a_batch_bound_its_shards(batches: BatchHarness) -> None:
    batches.planned(40, slots=3)
    (task,) = batches.send()
    assert task.slots == 3
    batches.handle(batches.stages.draw(task))
    assert [each.slots for each in batches.send()] == [3]


def test_slots_that_are_more_than_a_generators_are_shared(batches: BatchHarness) -> None:
    batches.planned(40, slots=12)
    assert [task.slots for task in batches.send()] == [8, 4]


def test_slots_of_a_tenant_bound_all_its_batches(batches: BatchHarness) -> None:
    database = batches.gateway.gateway.context.database
    TenantRepository(database, batches.gateway.clock).set("default", limits={"max_batch_slots": 10})
    batches.planned(40)
    batches.planned(40)
    assert [task.slots for task in batches.send()] == [8, 2]


def test_tenants_take_turns_and_ranks_come_first(batches: BatchHarness) -> None:
    tenants = TenantRepository(batches.gateway.gateway.context.database, batches.gateway.clock)
    tenants.create("other")
    low = batches.planned(40)
    high = batches.planned(8, rank=5)
    other = batches.planned(40, tenant="other")
    order = []
    for _ in range(3):
        tasks = batches.send()
        order += [task.batch for task in tasks]
        batches.handle(*(batches.stages.draw(task) for task in tasks))
    assert sorted(order[:3], key=[high, other].index) == [high, high, other]
    assert order.count(other) >= 4
    assert order.index(low) > max(at for at, each in enumerate(order) if each == high)


def test_events_may_come_twice_and_late(batches: BatchHarness) -> None:
    batch = batches.planned(10)
    first, *others = batches.send()
    done = batches.stages.draw(first)
    batches.handle(batches.stages.progress(first, 3), done, done, batches.stages.progress(first, 9))
    batches.handle(failed(first, FailureReason.POISON))
    row = batches.get(batch).batch
    assert (row.drawn, row.shards_ended) == (4, 1)
    for task in others:
        batches.handle(batches.stages.draw(task))
    batches.room.finish()
    batches.handle(done)
    assert batches.state(batch) == "succeeded"


def test_progress_counts_candidates_and_renews_the_lease(batches: BatchHarness) -> None:
    batch = batches.planned(4)
    (task,) = batches.send()
    before = batches.get(batch)
    assert (before.in_flight, before.generated) == (1, 0)
    batches.gateway.clock.advance(500)
    batches.handle(batches.stages.progress(task, 5))
    after = batches.get(batch)
    assert after.generated == 5
    assert after.batch.version > before.batch.version
    batches.pass_time(110)
    assert batches.send() == []  # The worker has said 110 s ago that it works on it.


def test_lost_message_is_sent_again_without_counting_as_an_attempt(batches: BatchHarness) -> None:
    batches.planned(4)
    for lease in range(1, 9):
        (task,) = batches.send()
        assert task.lease == lease
        batches.pass_time(600 * 16 + 1)


def test_worker_that_stops_responding_is_an_attempt_and_the_shard_is_halved(
    make_gateway: MakeGateway,
) -> None:
    batches = BatchHarness(make_gateway(write=3, attempts=2))
    batch = batches.planned(4)
    for _ in range(2):
        (task,) = batches.send()
        batches.handle(batches.stages.progress(task, 1))
        batches.room.progress.store()
        batches.pass_time(121)
    assert names(batches.send()) == ["00000-0-2", "00000-2-2"]
    assert batches.state(batch) == "running"


def test_poisoned_prompt_is_found_by_halving(batches: BatchHarness) -> None:
    batch = batches.planned(10)
    crashes = 0
    while tasks := batches.send():
        for task in tasks:
            if any(prompt.row == 5 for prompt in batches.stages.prompts(task)):
                crashes += 1
                batches.handle(failed(task, FailureReason.POISON, "its worker died 3 times"))
            else:
                batches.handle(batches.stages.draw(task))
    assert crashes == 3  # The shard, a half, and the prompt.
    batches.room.finish()
    row = batches.get(batch).batch
    assert (row.state, row.drawn, row.failed, row.shards_ended, row.shards) == ("succeeded", 9, 1, 3, 3)
    rows = batches.rows(batch)
    assert [each["row"] for each in rows] == list(range(10))
    (poisoned,) = [each for each in rows if each["state"] == "failed"]
    assert poisoned["row"] == 5
    assert poisoned["problem"] == "encode: its worker died 3 times"
    assert poisoned["tar"] is None
    assert "00001-0-1.tar" in batches.files(batch)


def test_done_event_of_a_shard_that_was_halved_does_not_count(batches: BatchHarness) -> None:
    batch = batches.planned(4)
    (task,) = batches.send()
    batches.handle(failed(task, FailureReason.POISON), batches.stages.draw(task))
    assert batches.get(batch).batch.drawn == 0
    batches.run()
    assert [each["row"] for each in batches.rows(batch)] == [0, 1, 2, 3]


def test_shard_that_a_stage_gives_up_is_sent_later(batches: BatchHarness) -> None:
    batches.planned(4)
    (task,) = batches.send()
    batches.handle(failed(task, FailureReason.EXHAUSTED, "the store does not answer"))
    assert batches.send() == []
    batches.pass_time(5.1)
    (again,) = batches.send()
    assert again.lease == 2
    batches.handle(failed(task, FailureReason.POISON))  # Of the lease before.
    assert batches.send() == []


def test_batch_ends_if_the_prompts_of_a_shard_are_gone(batches: BatchHarness) -> None:
    batch = batches.planned(8)
    first, second = batches.send()
    batches.handle(failed(first, FailureReason.INPUTS, "it has not seen them"))
    assert batches.send() == []
    batches.pass_time(5.1)
    assert names(batches.send()) == [first.range.name]
    batches.store.delete(second.shard.key)
    batches.handle(failed(second, FailureReason.INPUTS, f"{second.shard.key}: no such object"))
    assert batches.send() == []
    row = batches.get(batch).batch
    assert row.state == "failed"
    assert f"there is no object {second.shard.key}; it has the prompts of a shard" in str(row.error)


def test_marker_of_a_lease_before_is_no_obstacle(batches: BatchHarness) -> None:
    batches.planned(4)
    (task,) = batches.send()
    marker = JobKeys(task.job).cancelled
    batches.store.put(marker, b"{}")
    batches.handle(failed(task, FailureReason.CANCELLED))
    (again,) = batches.send()
    assert again.lease == 2
    assert marker not in batches.keys("jobs/")


def test_broker_that_is_away_loses_nothing(batches: BatchHarness) -> None:
    batch = batches.planned(4)
    batches.gateway.publisher.available = False
    with pytest.raises(BrokerUnavailableError):
        batches.send()
    batches.gateway.publisher.available = True
    batches.run()
    assert batches.state(batch) == "succeeded"


def test_batch_of_a_newer_version_does_not_hold_up_others(batches: BatchHarness) -> None:
    newer, own = batches.planned(4), batches.planned(4)
    with batches.gateway.gateway.context.database.write() as session:
        session.get_one(Batch, newer).parameters = {"input": 7}
    assert [task.batch for task in batches.send()] == [own]


def test_batch_of_a_newer_version_without_workers_does_not_hold_up_others(batches: BatchHarness) -> None:
    gateway = batches.gateway
    newer, free = batches.planned(4), batches.planned(4)
    with gateway.gateway.context.database.write() as session:
        session.get_one(Batch, newer).parameters = {"input": 7}
    own = card_of(gateway)
    other = another_card(own, "1")
    say_goodbye(gateway, own)
    say_hello(gateway, other)
    gateway.clock.advance(100)
    say_hello(gateway, other)
    assert [(task.batch, task.revision) for task in batches.send()] == [(free, other.revision)]


def test_shards_are_bound_to_another_revision_if_their_own_has_no_workers(batches: BatchHarness) -> None:
    gateway = batches.gateway
    own = card_of(gateway)
    other = another_card(own, "1")
    free, pinned = batches.planned(8), batches.planned(4, pinned=True)
    first, second, third = batches.send()
    assert {task.revision for task in (first, second, third)} == {own.revision}
    say_goodbye(gateway, own)
    say_hello(gateway, other)
    gateway.clock.advance(100)
    say_hello(gateway, other)
    gateway.clock.advance(600 * 16)
    say_hello(gateway, other)
    tasks = batches.send()
    assert [(task.batch, task.revision, task.binding) for task in tasks] == [
        (free, other.revision, 1),
        (free, other.revision, 1),
    ]
    assert "waits for workers" in (batches.get(pinned).batch.trouble or "")
    batches.handle(*(batches.stages.draw(task) for task in tasks))
    batches.room.finish()
    assert {row["revision"] for row in batches.rows(free)} == {other.revision}
    batches.greet()
    batches.run()
    assert batches.state(pinned) == "succeeded"
    assert batches.get(pinned).batch.trouble is None
