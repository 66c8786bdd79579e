"""Turns among tenants: who is sent next, how fair that is, and that it costs the same however much waits."""

import re
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from sqlalchemy import event, insert, text

from harness.gateway import MakeGateway
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import Chunk, ChunkState, Job, JobState
from smalti.services.gateway.jobs.lifecycle import new_chunk
from smalti.services.gateway.settings import GatewaySettings
from smalti.services.gateway.work.picking import Picker, Run, Turns
from smalti.services.gateway.work.waiting import MAX_TENANTS, OfTenant, TenantWork, WaitingChunk
from tests.services.gateway.test_tenants import add_tenant

TURN = 16
CHUNK = 4
NOW = 1_800_000_000.0


class Tenants:
    """Tenants in memory with chunks that wait, read a few at a time as the database is."""

    def __init__(self, sizes: Mapping[str, Sequence[int]], weights: Mapping[str, int], together: int) -> None:
        self.weights = weights
        self.together = together
        self.waiting = {
            name: deque(WaitingChunk(f"{name}-{number}", number, size) for number, size in enumerate(each))
            for name, each in sizes.items()
        }

    def read(self, first: str) -> TenantWork:
        names = sorted(name for name, chunks in self.waiting.items() if chunks)
        names = [name for name in names if name >= first] + [name for name in names if name < first]
        found = []
        for name in names[: self.together]:
            most = TURN * self.weights[name]
            chunks = deque(list(self.waiting[name])[:most])
            found.append(OfTenant(name, self.weights[name], None, 0, chunks, len(chunks) == most))
        return TenantWork(found, len(names) <= self.together)

    def send(self, turns: Turns, room: int) -> list[tuple[str, int]]:
        """Takes what fits into the room; returns the tenants and the sizes of their chunks."""
        sent = []
        for chunk in turns.chunks(self.read):
            name = chunk.job_id.rpartition("-")[0]
            assert self.waiting[name].popleft() == chunk  # In the order in which they came.
            sent.append((name, chunk.size))
            room -= chunk.size
            if room <= 0:
                break
        return sent


sizes = some.lists(some.integers(1, CHUNK), min_size=1, max_size=60)


@given(
    data=some.data(),
    tenants=some.dictionaries(
        some.sampled_from("abcdefgh"), some.tuples(sizes, some.integers(1, 3)), min_size=1
    ),
    together=some.integers(2, 8),
)
def test_turns_are_fair_and_leave_nobody_out(
    data: some.DataObject, tenants: dict[str, tuple[list[int], int]], together: int
) -> None:
    """While two tenants have work, neither gets more by its weight than the other, but for a turn."""
    weights = {name: weight for name, (_, weight) in tenants.items()}
    world = Tenants({name: each for name, (each, _) in tenants.items()}, weights, together)
    turns = Turns(TURN)
    sent: Counter[str] = Counter()
    while any(world.waiting.values()):
        now = world.send(turns, data.draw(some.integers(1, 40), label="room"))
        assert now, "nothing is sent, though something waits"
        for name, size in now:
            sent[name] += size
        busy = [name for name, chunks in world.waiting.items() if chunks]
        by_weight = [sent[name] / weights[name] for name in busy]
        if len(by_weight) > 1:
            assert max(by_weight) - min(by_weight) <= TURN + 2 * CHUNK
    assert sent == {name: sum(each) for name, (each, _) in tenants.items()}


@given(ours=sizes, room=some.integers(1, 64), others=some.integers(1, 12))
def test_new_work_waits_for_at_most_one_turn_of_each_other_tenant(
    ours: list[int], room: int, others: int
) -> None:
    names = [f"t{number:02}" for number in range(others)]
    world = Tenants({name: [CHUNK] * 200 for name in names}, dict.fromkeys([*names, "single"], 1), 5)
    turns = Turns(TURN)
    for _ in range(3):
        world.send(turns, room)
    world.waiting["single"] = deque([WaitingChunk("single-0", 0, CHUNK)])
    before: Counter[str] = Counter()
    while world.waiting["single"]:
        for name, size in world.send(turns, room):
            if name == "single":
                break
            before[name] += size
    assert all(before[name] <= TURN for name in names), before


# In the database


def add_jobs(
    database: Database, tenant: str, jobs: int, *, chunks: int = 1, first: int = 0, **changes: Any
) -> None:
    """Stores jobs of a tenant that wait, each with some chunks of 4 candidates."""
    of_job = {
        "version": 1, "state": JobState.QUEUED, "tenant": tenant, "parameters": {}, "given": [], "priority": 0,
        "labels": {}, "expires": 2**60, "retention": 0, "rows": 16, "rows_drawn": 0, "candidates_generated": 0,
        "candidates_decoded": 0, "candidates_ranked": 0, "prompt_encoded": False, "lease": 0, "revision": "r",
        "candidates": 4 * chunks, **changes,
    }  # fmt: skip
    rows = [Job(id=f"{tenant}-{number}", created=number, **of_job) for number in range(first, first + jobs)]
    with database.write() as session:
        session.execute(insert(Job), [{**of_job, "id": each.id, "created": each.created} for each in rows])
        session.execute(
            insert(Chunk),
            [new_chunk(each, number, first=4 * number, count=4) for each in rows for number in range(chunks)],
        )


def picked(database: Database, picker: Picker, room: int, revision: str | None = "r") -> list[Run]:
    """Picks chunks and marks them as sent."""
    with database.write() as session:
        runs, _ = picker.pick(session, lambda leased: {revision: room}, limit=256)
        for run in runs:
            for number in run.numbers:
                session.get_one(Chunk, (run.job_id, number)).state = ChunkState.LEASED
    return runs


def make_picker(**settings: Any) -> Picker:
    return Picker(GatewaySettings(**settings), lambda: NOW)


def tenants_of(runs: Sequence[Run]) -> list[str]:
    return [run.job_id.rpartition("-")[0] for run in runs for _ in run.numbers]


def test_single_job_behind_many_waits_for_one_turn(database: Database) -> None:
    add_tenant(database, "big")
    add_tenant(database, "small")
    add_jobs(database, "big", 300)
    for turn, most in ((16, 4), (4, 1)):
        picker = make_picker(turn=turn)
        assert tenants_of(picked(database, picker, 20)) == ["big"] * 5
        add_jobs(database, "small", 1, first=turn)
        assert "small" in tenants_of(picked(database, picker, 4 * (most + 1)))


def test_turns_that_are_given_back_were_not_taken(database: Database) -> None:
    for name in ("a", "b"):
        add_tenant(database, name)
        add_jobs(database, name, 40)
    picker, twin = make_picker(), make_picker()
    windows: dict[str | None, int] = {"r": 80}
    with database.read() as session:
        runs, _ = picker.pick(session, lambda leased: windows, limit=256)
        picker.give_back(runs[7:])
        again, _ = picker.pick(session, lambda leased: windows, limit=256)
        whole, _ = twin.pick(session, lambda leased: windows, limit=256)
    assert tenants_of(runs)[:8] == ["a"] * 4 + ["b"] * 4
    # Of the turn of b one chunk is left.
    assert tenants_of(again)[:5] == ["b"] + ["a"] * 4
    assert tenants_of(whole) == tenants_of(runs)


def test_job_that_comes_while_chunks_are_sent_waits_for_one_turn(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(window=400)
    for name in ("big", "small"):
        add_tenant(gateway.gateway.context.database, name)
    big = [gateway.create(tenant="big", candidates=16) for _ in range(20)]
    publish, came = gateway.publisher.publish, []

    def publish_and_create(message: Any, **options: Any) -> None:
        publish(message, **options)
        if message.job == big[2]:
            came.append(gateway.create(tenant="small"))

    gateway.publisher.publish = publish_and_create  # type: ignore[method-assign]
    order = [task.job for task in gateway.send()]
    assert order.index(came[0]) <= 4
    assert sorted(order) == sorted([*big, *came])


def test_turn_of_who_was_alone_ends_when_another_comes(database: Database) -> None:
    add_tenant(database, "big")
    add_tenant(database, "small")
    add_jobs(database, "big", 40)
    picker = make_picker()
    assert tenants_of(picked(database, picker, 24)) == ["big"] * 6  # A turn, and half of one.
    add_jobs(database, "small", 1, first=100)
    assert tenants_of(picked(database, picker, 8)) == ["small", "big"]


def test_shares_follow_the_weights(database: Database) -> None:
    add_tenant(database, "one", weight=1)
    add_tenant(database, "three", weight=3)
    add_jobs(database, "one", 100)
    add_jobs(database, "three", 100)
    picker = make_picker()
    shares = Counter(name for _ in range(8) for name in tenants_of(picked(database, picker, 32)))
    assert shares == {"one": 16, "three": 48}


def test_two_gateways_are_as_fair_as_one(database: Database) -> None:
    for name in ("a", "b", "c"):
        add_tenant(database, name)
        add_jobs(database, name, 60)
    pickers = [make_picker(), make_picker()]
    sent: Counter[str] = Counter()
    for number in range(20):
        sent.update(tenants_of(picked(database, pickers[number % 2], 20)))
        # A turn of each gateway.
        assert max(sent.values()) - min(sent.get(name, 0) for name in "abc") <= 2 * TURN / CHUNK + 1
    assert sum(sent.values()) == 100


def test_tenant_has_no_more_than_its_slots_for_batch_work(database: Database) -> None:
    add_tenant(database, "few", max_batch_slots=10)
    add_tenant(database, "default-slots")
    for name in ("few", "default-slots"):
        add_jobs(database, name, 10, priority=1)
    add_jobs(database, "few", 3, priority=0, first=100)
    picker = make_picker(batch_slots=16)
    counted = Counter(tenants_of(picked(database, picker, 1000)))
    assert counted == {"few": 2 + 3, "default-slots": 4}
    assert picked(database, picker, 1000) == []
    with database.write() as session:
        session.execute(text("UPDATE chunks SET state = 'done' WHERE state = 'leased' AND tenant = 'few'"))
    assert Counter(tenants_of(picked(database, picker, 1000))) == {"few": 2}


def test_slots_that_are_smaller_than_a_chunk_let_one_through(database: Database) -> None:
    add_tenant(database, "few", max_batch_slots=1)
    add_jobs(database, "few", 2, priority=1)
    assert len(picked(database, make_picker(), 1000)) == 1


def test_many_tenants_without_slots_do_not_hide_the_others(database: Database) -> None:
    for number in range(2 * MAX_TENANTS):
        add_tenant(database, f"t{number:03}", max_batch_slots=4)
        add_jobs(database, f"t{number:03}", 2, priority=1)
    picker = make_picker()
    while picked(database, picker, 10**6):
        pass  # Each has one chunk in the queues.
    add_tenant(database, "z")
    add_jobs(database, "z", 1, priority=1)
    assert tenants_of(picked(database, picker, 100)) == ["z"]


def test_revisions_have_windows_of_their_own(database: Database) -> None:
    add_tenant(database, "a")
    for number, revision in enumerate(("new", "old", "gone", None)):  # The last one is of an older version.
        add_jobs(database, "a", 10, first=100 * number, revision=revision)
    picker = make_picker()
    seen: list[Any] = []

    def windows(leased: Mapping[str | None, int]) -> Mapping[str | None, int]:
        seen.append(leased)
        return {"new": 8, "old": 4, None: 4}

    with database.write() as session:
        session.execute(text("UPDATE chunks SET state = 'leased' WHERE job_id IN ('a-0', 'a-1', 'a-300')"))
        runs, _ = picker.pick(session, windows, limit=256)
    assert seen == [{"new": 8, "old": 0, "gone": 0, None: 4}]
    assert sorted(run.job_id for run in runs) == ["a-100", "a-2", "a-3", "a-301"]


def test_job_that_is_set_aside_holds_up_nobody(database: Database) -> None:
    add_tenant(database, "a")
    add_jobs(database, "a", 3)
    with database.write() as session:
        job = session.get_one(Job, "a-0")
        job.set_aside_until, job.set_aside_by = 2**60, ""
    assert [run.job_id for run in picked(database, make_picker(), 100)] == ["a-1", "a-2"]


def test_chunks_of_a_job_go_together(database: Database) -> None:
    add_tenant(database, "a")
    add_jobs(database, "a", 2, chunks=6)
    add_jobs(database, "a", 2, chunks=2, first=10, priority=1)
    runs = picked(database, make_picker(), 1000)
    assert [(run.job_id, len(run.numbers)) for run in runs] == [
        ("a-0", 6), ("a-1", 6), ("a-10", 2), ("a-11", 2),
    ]  # fmt: skip


@pytest.mark.parametrize("revision", ["r", None])
@pytest.mark.parametrize(("tenants", "jobs"), [(1, 3000), (300, 3)])
def test_index_finds_the_next_chunks(
    database: Database, tenants: int, jobs: int, revision: str | None
) -> None:
    """Neither the chunks that wait nor their tenants are read one by one."""
    for number in range(tenants):
        add_tenant(database, f"t{number:03}")
        add_jobs(database, f"t{number:03}", jobs, revision=revision)
    explained = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: object) -> None:
        # Where nothing waits, any index will do.
        of_batch = isinstance(parameters, Mapping) and parameters.get("priority") == 1
        if "waiting" in statement and not of_batch:
            explained.append((statement, parameters))

    with database.read() as session:
        connection = session.connection()
        connection.exec_driver_sql("ANALYZE")
        event.listen(connection, "before_cursor_execute", note)
        make_picker().pick(session, lambda leased: {revision: 64}, limit=64)
        event.remove(connection, "before_cursor_execute", note)
        verb = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN (COSTS OFF)"
        plans = [
            "\n".join(
                str(row)
                for row in connection.connection.driver_connection.execute(f"{verb} {statement}", parameters)  # type: ignore[union-attr]
            )
            for statement, parameters in explained
        ]
    assert len(plans) >= 2
    for plan in plans:
        assert "chunks_of_revision" in plan, plan
        reads_all = r"SCAN chunks(?! USING INDEX)|Seq Scan on chunks|TEMP B-TREE FOR ORDER BY.*SEARCH chunks"
        assert not re.search(reads_all, plan), plan
        # What is in the queues is sorted to be grouped.
        assert len(re.findall(r"Sort Key: chunks", plan)) <= ("leased" in plan), plan
