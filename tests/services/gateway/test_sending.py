"""Sending chunks: the window, the order of jobs, and leases."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from harness.gateway import FaultyStore, GatewayHarness, MakeGateway, encoded_job, failure, finish_chunk
from smalti.errors import BrokerUnavailableError, InvalidInputError
from smalti.messages import FailureReason, Stage
from smalti.parameters import Priority
from smalti.queue.crashes.poison import PoisonRecords, work_id
from smalti.services.gateway.database.clock import ManualClock
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import JobState
from smalti.services.gateway.work.dispatch import BATCH_SIZE
from smalti.storage import ObjectInfo

# Sending


def test_window_limits_what_is_sent(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(window=12)
    jobs = [gateway.create() for _ in range(3)]
    first = gateway.send()
    assert [(task.job, len(task.chunks)) for task in first] == [(jobs[0], 2), (jobs[1], 1)]
    assert gateway.send() == []
    gateway.handle(*gateway.stages.run(first[0]))
    second = gateway.send()
    assert [(task.job, [chunk.chunk for chunk in task.chunks]) for task in second] == [
        (jobs[1], [1]),
        (jobs[2], [0]),
    ]


def test_window_is_filled_by_several_batches_of_chunks(
    make_gateway: MakeGateway,
) -> None:
    gateway = make_gateway(window=1000, chunk=1, candidates=1000)
    gateway.create(candidates=BATCH_SIZE + 1)
    gateway.create(candidates=3)
    assert sum(len(task.chunks) for task in gateway.send()) == BATCH_SIZE + 4


def test_interactive_jobs_come_first_and_every_eighth_turn_is_for_batches(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(window=4, chunk=4)
    batch = {gateway.create(priority=Priority.BATCH, candidates=4) for _ in range(4)}
    for _ in range(20):
        gateway.create(candidates=4)
    turns = []
    for _ in range(16):
        (task,) = gateway.send()
        turns.append(task.job in batch)
        gateway.handle(*gateway.stages.run(task))
    assert turns == ([False] * 7 + [True]) * 2


def test_jobs_ahead_counts_the_jobs_that_are_served_first(gateway: GatewayHarness) -> None:
    batch = gateway.create(priority=Priority.BATCH)
    gateway.clock.advance(1)
    gateway.create()
    gateway.clock.advance(1)
    last = gateway.create()
    assert gateway.jobs.get(last).jobs_ahead == 1
    assert gateway.jobs.get(batch).jobs_ahead == 2
    gateway.run_jobs()
    assert gateway.jobs.get(last).jobs_ahead is None


def test_chunks_are_sent_once_the_broker_is_back(gateway: GatewayHarness) -> None:
    job = gateway.create()
    gateway.publisher.available = False
    with pytest.raises(BrokerUnavailableError):
        gateway.gateway.send()
    other = gateway.create()  # It is accepted nevertheless.
    gateway.publisher.available = True
    sent = gateway.send()
    assert {task.job for task in sent} == {job, other}
    assert gateway.send() == []


def test_chunks_of_a_dead_gateway_are_sent_by_another(make_gateway: MakeGateway, database: Database) -> None:
    first, second = make_gateway(), make_gateway()
    assert second.send() == []
    job = first.create()
    first.gateway.send()  # It dies before it stores the confirmation.
    assert second.send() == []
    second.clock.advance(20)
    (again,) = second.send()
    assert (again.job, again.lease) == (job, 2)
    second.create()
    second.gateway.send()
    third = make_gateway()
    third.clock.advance(20.1)
    assert len(third.send()) == database.is_sqlite  # SQLite has one gateway, which need not wait.


def test_long_job_is_sent_in_messages_within_the_size_limit(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(window=2000, candidates=1024)
    long: dict[str, Any] = {"given": (2**31 - 1,) * 4096, "first_candidate": 10**6}
    gateway.create("ü" * 4000, candidates=1024, n=1, **long)
    tasks = gateway.send()
    assert len(tasks) > 1
    assert sum(len(task.chunks) for task in tasks) == 256
    assert all(len(task.to_json().encode()) <= 64 * 1024 for task in tasks)
    with pytest.raises(InvalidInputError, match="prompt: has too many bytes"):
        gateway.create("\x01" * 4000, candidates=1024, n=1, **long)


def test_two_gateways_send_every_chunk_once(make_gateway: MakeGateway) -> None:
    gateways = [make_gateway(), make_gateway()]
    assert [each.send() for each in gateways] == [[], []]
    jobs = {gateways[0].create() for _ in range(10)}
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda each: each.gateway.send(), gateways))
    gateways[0].gateway.send()
    sent = [task.job for each in gateways for task in each.sent_tasks()]
    assert sorted(sent) == sorted(jobs)


# Leases


def test_chunk_without_events_is_sent_again_under_a_new_lease(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(lease=100)
    job, task, generates = encoded_job(gateway)
    late = finish_chunk(gateway, generates[1])
    gateway.gateway.progress.store()
    gateway.clock.advance(60)
    gateway.handle(gateway.stages.draw_rows(generates[0], 2))  # It renews the lease of the first chunk.
    gateway.gateway.progress.store()
    gateway.clock.advance(50)
    (again,) = gateway.send()
    assert [chunk.chunk for chunk in again.chunks] == [1]
    assert again.lease > task.lease
    gateway.handle(late)  # It has the old lease, but counts.
    gateway.handle(finish_chunk(gateway, generates[0]))
    assert gateway.state(job) == "succeeded"


def test_lease_doubles_with_every_loss_until_the_attempts_are_exhausted(
    make_gateway: MakeGateway,
) -> None:
    gateway = make_gateway(lease=100, attempts=3)
    job, _, generates = encoded_job(gateway, time_limit=10_000.0)
    for seconds in (100, 200):
        gateway.handle(*(gateway.stages.draw_rows(generate, 2) for generate in generates))
        gateway.gateway.progress.store()
        gateway.clock.advance(seconds - 1)
        assert gateway.send() == []
        gateway.clock.advance(1)
        (again,) = gateway.send()
        generates, event = gateway.stages.encode(again)
        gateway.handle(event)
    gateway.handle(*(gateway.stages.draw_rows(generate, 2) for generate in generates))
    gateway.gateway.progress.store()
    gateway.clock.advance(400)
    assert gateway.send() == []
    failed = gateway.get(job)
    assert failed.job.state is JobState.FAILED
    assert type(failure(failed)).__name__ == "AttemptsExhaustedError"
    assert "failed 3 times" in str(failure(failed))


def test_crash_of_a_worker_is_not_an_attempt_of_what_it_held(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(lease=10, attempts=2)
    job, _, generates = encoded_job(gateway, time_limit=20_000.0)
    records = PoisonRecords(gateway.store, Stage.GENERATE)
    for _ in range(3):
        gateway.handle(*(gateway.stages.draw_rows(generate, 2) for generate in generates))
        gateway.gateway.progress.store()
        records.add(job, {work_id(generate) for generate in generates}, alone=False)
        gateway.clock.advance(700)
        (again,) = gateway.send()
        generates, event = gateway.stages.encode(again)
        gateway.handle(event)
    assert gateway.state(job) == "running"


def test_chunk_that_no_worker_begins_is_sent_again_until_its_job_expires(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(lease=10, attempts=2)
    job = gateway.create(time_limit=500.0)
    sent = 0
    for _ in range(49):
        gateway.clock.advance(10)
        sent += len(gateway.send())
    assert 4 <= sent <= 8  # The lease doubles each time.
    assert gateway.state(job) == "queued"
    gateway.pass_time(10)
    assert gateway.state(job) == "expired"


def test_waiting_for_a_later_stage_is_not_an_attempt(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(lease=10, attempts=2)
    job, _, generates = encoded_job(gateway, time_limit=20_000.0)
    for _ in range(5):  # There is no decoder; then there is no generator either.
        for generate in generates:
            gateway.handle(gateway.stages.draw_rows(generate, 2), gateway.stages.generate(generate)[1])
        gateway.gateway.progress.store()
        gateway.clock.advance(700)
        (again,) = gateway.send()
        generates, event = gateway.stages.encode(again)
        gateway.handle(event)
    gateway.clock.advance(700)
    assert len(gateway.send()) == 1
    assert gateway.state(job) == "running"


def test_gateway_that_was_suspended_extends_leases_instead_of_judging(make_gateway: MakeGateway) -> None:
    elapsed = ManualClock()
    gateway = make_gateway(lease=100, elapsed=elapsed)
    job, _, generates = encoded_job(gateway)
    for each in (gateway.clock, elapsed):
        each.advance(101)  # It is suspended; meanwhile the stages work, and their events wait for it.
    assert gateway.send() == []
    gateway.handle(*(finish_chunk(gateway, generate) for generate in generates))
    assert gateway.state(job) == "succeeded"
    lost, _, _ = encoded_job(gateway)
    gateway.clock.advance(101)  # It has looked all the time, so this lease is lost.
    assert [task.job for task in gateway.send()] == [lost]
    third = make_gateway(lease=100)  # So it is after a restart.
    gateway.clock.advance(201)
    third.clock.advance(gateway.clock() - third.clock())
    assert third.send() == []


def test_failure_under_an_old_lease_is_ignored(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(lease=100)
    job, _, generates = encoded_job(gateway)
    gateway.clock.advance(100)
    assert len(gateway.send()) == 1
    gateway.handle(generates[0].failed(FailureReason.POISON, "two workers ended"))
    assert gateway.state(job) == "running"


def test_chunk_that_a_stage_gives_up_is_sent_again_later(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(retry=5, attempts=2)
    job, _, generates = encoded_job(gateway)
    gateway.handle(generates[0].failed(FailureReason.EXHAUSTED, "the store is away"))
    assert gateway.send() == []
    gateway.clock.advance(5)
    (again,) = gateway.send()
    assert [chunk.chunk for chunk in again.chunks] == [0]
    gateway.handle(gateway.stages.encode(again)[0][0].failed(FailureReason.EXHAUSTED, "the store is away"))
    gateway.clock.advance(10)
    assert gateway.send() == []
    failed = gateway.get(job)
    assert failed.job.state is JobState.FAILED
    assert "generate: the store is away" in str(failure(failed))


@pytest.mark.parametrize("trouble", ["unavailable", "full"])
def test_expired_leases_do_not_count_as_attempts_while_the_store_is_unavailable(
    make_gateway: MakeGateway, trouble: str
) -> None:
    store = FaultyStore()
    gateway = make_gateway(store=store, lease=10, retry=5, attempts=2)
    job, _, _ = encoded_job(gateway)
    setattr(store, trouble, True)
    for _ in range(10):
        gateway.clock.advance(20)
        assert gateway.send() == []
    setattr(store, trouble, False)
    gateway.clock.advance(20)
    assert len(gateway.send()) == 1
    assert gateway.state(job) == "running"


def test_crash_after_a_stage_gave_up_is_not_an_attempt(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(lease=10, retry=5, attempts=2)
    job, _, generates = encoded_job(gateway, time_limit=20_000.0)
    gateway.handle(generates[0].failed(FailureReason.EXHAUSTED, "the store is away"))
    gateway.clock.advance(5)
    (again,) = gateway.send()
    assert [chunk.chunk for chunk in again.chunks] == [0]
    records = PoisonRecords(gateway.store, Stage.GENERATE)
    for _ in range(3):
        generates, event = gateway.stages.encode(again)
        gateway.handle(event, gateway.stages.draw_rows(generates[0], 2))
        gateway.gateway.progress.store()
        records.add(job, {work_id(generates[0])}, alone=False)
        gateway.clock.advance(700)
        again = next(task for task in gateway.send() if 0 in [chunk.chunk for chunk in task.chunks])
    assert gateway.state(job) == "running"


class ListingStore(FaultyStore):
    """A store that counts its listings."""

    listings = 0

    def objects(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        """Lists objects."""
        self.listings += 1
        return super().objects(prefix, after=after)


def test_store_is_asked_about_crashes_only_where_they_matter(make_gateway: MakeGateway) -> None:
    store = ListingStore()
    gateway = make_gateway(store=store, lease=10)
    for _ in range(3):
        gateway.create()
    assert len(gateway.send()) == 3
    _, _, generates = encoded_job(gateway)
    gateway.handle(*(gateway.stages.draw_rows(generate, 2) for generate in generates))
    gateway.gateway.progress.store()
    gateway.clock.advance(700)
    assert len(gateway.send()) == 4
    # Of the others no worker is known to have begun.
    assert store.listings == 1
