"""Planning: inputs that are read, checked and cut, by gateways that are killed."""

from contextlib import suppress
from pathlib import Path

import pytest
from google.rpc.status_pb2 import Status

from harness.batches import BatchHarness
from harness.gateway import MakeGateway
from harness.killing import Killed, killed_at
from harness.policy import MESSAGE, PolicyProcess
from harness.waiting import wait_until
from smalti.batches import BatchKeys
from smalti.errors import (
    InvalidInputError,
    QuotaExceededError,
    SmaltiError,
    StoredFileNotFoundError,
    StoreUnavailableError,
    UnavailableError,
)
from smalti.rpc.errors import error_of_status
from smalti.services.gateway.database.tables import Batch, Shard
from smalti.services.gateway.identity import TenantRepository
from smalti.storage import MemoryStore


def problem_of(batches: BatchHarness, batch: str) -> SmaltiError:
    """Returns the error of a failed batch as a client sees it."""
    row = batches.get(batch).batch
    assert row.state == "failed"
    assert row.error is not None
    return error_of_status(Status.FromString(row.error))


def rows_of(batches: BatchHarness, batch: str) -> list[Shard]:
    """Returns the shards of a batch."""
    with batches.gateway.gateway.context.database.read() as session:
        return list(session.query(Shard).filter(Shard.batch_id == batch).order_by(Shard.number))


def test_input_is_checked_and_cut(batches: BatchHarness) -> None:
    batch = batches.create(["a cat", "", "a dog", "a bird"], shard_prompts=2)
    assert batches.state(batch) == "planning"
    batches.room.plan()
    row = batches.get(batch).batch
    assert (row.prompts, row.blank, row.invalid, row.candidates, row.shards) == (3, 1, 0, 9, 2)
    assert [(shard.number, shard.count, shard.candidates) for shard in rows_of(batches, batch)] == [
        (0, 2, 6),
        (1, 1, 3),
    ]
    assert len(batches.keys(f"{BatchKeys(batch).folder}shards/")) == 2


def test_input_that_cannot_be_used_ends_the_batch_and_leaves_nothing(batches: BatchHarness) -> None:
    batch = batches.create(["a cat", "a\0dog"])
    batches.room.plan()
    error = problem_of(batches, batch)
    assert isinstance(error, InvalidInputError)
    assert (error.field, "line 2" in error.problem) == ("input", True)
    batches.room.clean()
    assert batches.keys("batches/") == []
    assert rows_of(batches, batch) == []
    assert batches.send() == []


def test_missing_input_ends_the_batch(batches: BatchHarness) -> None:
    batch = batches.create(3)
    batches.store.delete("inputs/prompts.txt")
    batches.room.plan()
    assert isinstance(problem_of(batches, batch), StoredFileNotFoundError)


def test_invalid_rows_are_told_in_the_manifest(batches: BatchHarness) -> None:
    batch = batches.planned(["a cat", "a\0dog", "a bird"], skip_invalid=True)
    batches.run()
    row = batches.get(batch).batch
    assert (row.state, row.prompts, row.invalid, row.drawn, row.failed) == ("succeeded", 3, 1, 2, 0)
    assert [each["state"] for each in batches.rows(batch)] == ["drawn", "invalid", "drawn"]


def test_validation_alone_draws_nothing(batches: BatchHarness) -> None:
    batch = batches.planned(5, validate_only=True)
    snapshot = batches.get(batch)
    assert snapshot.batch.state == "succeeded"
    assert snapshot.estimate is not None
    assert (snapshot.estimate.candidates, snapshot.estimate.pictures) == (15, 10)
    assert batches.send() == []
    assert batches.keys("batches/") == []


@pytest.mark.parametrize(
    "point",
    ["gateway.after-checked", "gateway.before-shards", "gateway.after-shards", "gateway.after-planned"],
)
def test_planner_that_is_killed_loses_nothing(batches: BatchHarness, point: str) -> None:
    undisturbed = batches.planned(200, shard_prompts=2)
    batch = batches.create(200, shard_prompts=2)
    with pytest.raises(Killed), killed_at(point):
        batches.room.plan()
    batches.pass_time(31)  # The claim of the one that was killed ends.
    batches.room.plan()
    assert [(row.number, row.count, row.sha256) for row in rows_of(batches, batch)] == [
        (row.number, row.count, row.sha256) for row in rows_of(batches, undisturbed)
    ]
    assert batches.state(batch) == "running"


def test_planner_that_has_lost_its_claim_stores_nothing(batches: BatchHarness) -> None:
    batch = batches.create(4)
    claims = batches.room.planner._claims
    with claims.next(Batch.planned.is_(None)) as claim:
        assert claim is not None
        batches.room.repository.cancel(batch)
        with pytest.raises(Exception, match="not claimed any more"):
            batches.room.planner._plan(claim)
    assert batches.state(batch) == "cancelled"
    assert rows_of(batches, batch) == []


def test_two_gateways_do_not_plan_the_same_batch(batches: BatchHarness) -> None:
    batches.create(4)
    with batches.room.planner._claims.next(Batch.planned.is_(None)) as claim:
        assert claim is not None
        assert not batches.room.planner.plan_next()


def test_candidates_count_against_the_day_and_too_many_fail(batches: BatchHarness) -> None:
    database = batches.gateway.gateway.context.database
    tenants = TenantRepository(database, batches.gateway.clock)
    tenants.set("default", limits={"max_candidates": 40})
    first, second = batches.planned(10), batches.planned(10)
    assert batches.state(first) == "running"
    error = problem_of(batches, second)
    assert isinstance(error, QuotaExceededError)
    assert (error.limit, error.left) == (40, 10)
    assert "the batch has 30" in str(error)
    (usage,) = tenants.usage(1)
    assert usage.candidates == 30


def test_prompts_that_the_word_list_refuses_are_not_drawn(
    make_gateway: MakeGateway, tmp_path_factory: pytest.TempPathFactory
) -> None:
    words = tmp_path_factory.mktemp("words") / "words.txt"
    words.write_text("dragon\n")
    batches = BatchHarness(make_gateway(write=3, policy_list=words))
    batch = batches.planned(["a cat", "a dragon", "a bird"])
    assert batches.get(batch).batch.candidates == 6
    batches.run()
    rows = batches.rows(batch)
    assert [row["state"] for row in rows] == ["drawn", "failed", "drawn"]
    assert rows[1]["problem"] == "the operator's policy refuses the prompt"


def test_prompts_that_the_hook_refuses_are_not_drawn(make_gateway: MakeGateway, hook: PolicyProcess) -> None:
    batches = BatchHarness(make_gateway(write=3, policy_hook=hook.url, policy_subjects="prompts"))
    batch = batches.planned(["a cat", "a weapon", "a bird"])
    batches.run()
    assert [row["problem"] for row in batches.rows(batch)] == [
        None,
        f"the operator's policy refuses the prompt: {MESSAGE}",
        None,
    ]


def test_batch_is_planned_when_the_hook_is_there_again(make_gateway: MakeGateway) -> None:
    with PolicyProcess() as process:
        batches = BatchHarness(make_gateway(write=3, policy_hook=process.url, policy_subjects="prompts"))
        batch = batches.create(8)
        process.stop()
        with pytest.raises(UnavailableError, match="policy does not answer"):
            batches.room.plan()
        assert batches.state(batch) == "planning"
        process.start()

        def planned() -> bool:
            with suppress(UnavailableError):
                batches.room.plan()
            return batches.state(batch) == "running"

        wait_until(planned)
    assert [shard.count for shard in rows_of(batches, batch)] == [4, 4]


class PartlyAwayStore(MemoryStore):
    """A store that does not give one object."""

    away = "inputs/away.txt"

    def get_file(self, key: str, path: Path, *, sha256: str | None = None) -> None:
        """Copies an object to a file."""
        if key == self.away:
            raise StoreUnavailableError("the store is unavailable")
        super().get_file(key, path, sha256=sha256)


def test_batch_that_cannot_be_planned_now_does_not_hold_up_others(make_gateway: MakeGateway) -> None:
    store = PartlyAwayStore()
    batches = BatchHarness(make_gateway(write=3, store=store))
    waiting, *others = batches.create(4, key=store.away), batches.create(4), batches.create(4)
    with pytest.raises(StoreUnavailableError):
        batches.room.plan()
    batches.gateway.clock.advance(1)
    with pytest.raises(StoreUnavailableError):
        batches.room.plan()
    assert [batches.state(batch) for batch in (waiting, *others)] == ["planning", "running", "running"]
    store.away = ""
    batches.gateway.clock.advance(1)
    batches.room.plan()
    assert batches.state(waiting) == "running"


def test_prompts_that_are_too_long_for_the_tenant_are_not_drawn(batches: BatchHarness) -> None:
    database = batches.gateway.gateway.context.database
    TenantRepository(database, batches.gateway.clock).set("default", limits={"max_prompt": 5})
    batch = batches.planned(["a cat", "a long prompt"])
    batches.run()
    assert [row["problem"] for row in batches.rows(batch)] == [
        None,
        "the prompt has 13 characters; the tenant may have 5",
    ]


def test_tenant_has_a_limit_of_open_batches(make_gateway: MakeGateway) -> None:
    batches = BatchHarness(make_gateway(write=3, open_batches=1))
    first = batches.create(4)
    with pytest.raises(QuotaExceededError, match="may have 1"):
        batches.create(4)
    batches.room.repository.cancel(first)
    batches.create(4)
