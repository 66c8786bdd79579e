"""The gateway's jobs, without its network: on SQLite and on PostgreSQL, with stages that the test plays."""

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from services.gateway.database import Database, DatabaseUnavailableError
from services.gateway.jobs import Conditions, Position, Snapshot
from services.gateway.tables import Job, State
from services.gateway.testing import GatewayStand, emptied, order
from smalti.engines.requests import Priority
from smalti.errors import InvalidInputError, JobNotFoundError, OverloadedError, RequestIdReusedError
from smalti.messages import EncodeTask, FailureReason, GenerateTask, StageDone
from smalti.models.folder import ModelFolder
from smalti.models.sizes import Sizes
from smalti.queue import BrokerUnavailableError
from smalti.results import ResultFile
from smalti.rpc.errors import error_of_status
from smalti.storage import JobKeys, MemoryStore, ObjectRef, StoreUnavailableError
from smalti.testing.servers import PostgresServer
from smalti.testing.stages import picture_bytes

Make = Callable[..., GatewayStand]

CHUNKS = 2  # Of a job of 8 candidates.


@pytest.fixture(scope="session")
def sizes(tiny: ModelFolder) -> Sizes:
    return Sizes.of(tiny)


@pytest.fixture
def make(database: Database, sizes: Sizes) -> Iterator[Make]:
    """Makes gateways on one database."""
    made: list[GatewayStand] = []

    def another(**settings: Any) -> GatewayStand:
        made.append(GatewayStand(database, sizes, **settings))
        return made[-1]

    yield another
    for each in made:
        each.close()


@pytest.fixture
def gateway(make: Make) -> GatewayStand:
    return make()


def failure(snapshot: Snapshot) -> Exception:
    """Returns why a job has failed, as its user sees it."""
    from google.rpc.status_pb2 import Status

    assert snapshot.job.error is not None
    return error_of_status(Status.FromString(snapshot.job.error))


def begun(gateway: GatewayStand, **changes: Any) -> tuple[str, EncodeTask, tuple[GenerateTask, ...]]:
    """Accepts a job and encodes its prompt."""
    job = gateway.create(**changes)
    (task,) = gateway.send()
    generates, event = gateway.stages.encode(task)
    gateway.tell(event)
    return job, task, generates


def finish_chunk(gateway: GatewayStand, generate: GenerateTask) -> StageDone:
    """Draws, decodes and ranks a chunk; returns the last event, which was not told."""
    decode, drawn = gateway.stages.generate(generate)
    rank, decoded = gateway.stages.decode(decode)
    gateway.tell(drawn, decoded)
    return gateway.stages.rank(rank)


# The way of a job


def test_job_goes_its_way(gateway: GatewayStand) -> None:
    job = gateway.create()
    assert gateway.state(job) == "queued"
    (task,) = gateway.send()
    assert [chunk.candidates for chunk in task.chunks] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert gateway.state(job) == "queued"  # Sent, but nobody has begun.
    generates, event = gateway.stages.encode(task)
    gateway.tell(event)
    running = gateway.get(job).job
    assert (running.state, running.encoded, running.reading) == (
        State.RUNNING,
        True,
        {"drawn": "a cat", "cut": False, "unknown": [], "left_out": [], "notice": ""},
    )
    gateway.tell(gateway.stages.draw_rows(generates[1], 3))
    assert gateway.get(job).job.rows_drawn == 4 * 3
    gateway.tell(finish_chunk(gateway, generates[1]))
    half = gateway.get(job).job
    assert (half.rows, half.rows_drawn, half.drawn, half.decoded, half.ranked) == (32, 16, 4, 4, 4)
    assert half.state is State.RUNNING
    gateway.tell(finish_chunk(gateway, generates[0]))
    ended = gateway.get(job)
    assert ended.job.state is State.SUCCEEDED
    assert [picture.candidate for picture in ended.pictures] == [7, 6, 5]
    assert [picture.rank for picture in ended.pictures] == [0, 1, 2]
    assert ended.job.ended == ended.job.delete_at - 5_000_000_000  # type: ignore[operator]


def test_result_says_all_that_is_needed_to_draw_on(gateway: GatewayStand, tiny: ModelFolder) -> None:
    job = gateway.create()
    gateway.work()
    key = JobKeys(job).result
    result = ResultFile.parse(key, gateway.store.get(key))
    assert (result.prompt, result.seed, result.revision, result.candidates) == ("a cat", 7, tiny.revision, 8)
    assert [(picture.index, picture.tokens) for picture in result.pictures] == [
        (index, (index,) * 16) for index in (7, 6, 5)
    ]
    assert gateway.store.get(result.pictures[0].key, sha256=result.pictures[0].sha256) == picture_bytes(7, 7)


def test_equal_scores_keep_the_order_of_the_candidates(gateway: GatewayStand) -> None:
    gateway.stages.score = lambda index: 0.5 if index % 2 else 0.25
    job = gateway.create(n=6)
    gateway.work()
    assert [picture.candidate for picture in gateway.get(job).pictures] == [1, 3, 5, 7, 0, 2]


def test_order_is_the_rankers(gateway: GatewayStand) -> None:
    from smalti.engines.ranker import best

    scores = [0.3, -0.1, 0.3, 0.7, 0.0, -0.0, 0.7, 0.1]
    gateway.stages.score = scores.__getitem__
    job = gateway.create(n=8)
    gateway.work()
    assert [picture.candidate for picture in gateway.get(job).pictures] == best(scores, 8)


def test_events_that_come_twice_late_or_in_disorder_change_nothing(gateway: GatewayStand) -> None:
    job = gateway.create()
    (task,) = gateway.send()
    events = list(gateway.stages.run(task))
    gateway.tell(*reversed(events))
    ended = gateway.get(job)
    assert ended.job.state is State.SUCCEEDED
    assert (ended.job.drawn, ended.job.decoded, ended.job.ranked) == (8, 8, 8)
    gateway.tell(*events, task.failed(FailureReason.INVALID, "prompt: too late"))
    again = gateway.get(job)
    assert again.job.version == ended.job.version
    assert [picture.candidate for picture in again.pictures] == [7, 6, 5]


def test_every_change_makes_a_higher_version(gateway: GatewayStand) -> None:
    job = gateway.create()
    versions = [gateway.get(job).job.version]
    (task,) = gateway.send()
    for event in gateway.stages.run(task):
        gateway.tell(event)
        versions.append(gateway.get(job).job.version)
    assert versions == sorted(set(versions))


def test_two_that_see_the_last_chunk_end_the_job_once(gateway: GatewayStand) -> None:
    job, _, generates = begun(gateway)
    gateway.tell(finish_chunk(gateway, generates[0]))
    last = finish_chunk(gateway, generates[1])
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(gateway.tell, [last] * 4))
    ended = gateway.get(job)
    assert (ended.job.state, ended.job.ranked) == (State.SUCCEEDED, 8)
    assert len(ended.pictures) == 3


# Acceptance


def test_same_request_gets_the_same_job(gateway: GatewayStand) -> None:
    wanted = order(request_id=str(uuid.uuid4()), request_hash="a" * 64)
    first = gateway.jobs.create(wanted).job.id
    gateway.work()
    again = gateway.jobs.create(wanted)
    assert (again.job.id, again.job.state) == (first, State.SUCCEEDED)
    assert len(again.pictures) == 3
    with pytest.raises(RequestIdReusedError) as reused:
        gateway.jobs.create(order("a dog", request_id=wanted.request_id, request_hash="b" * 64))
    assert reused.value.name == first


def test_same_request_at_the_same_time_makes_one_job(gateway: GatewayStand) -> None:
    wanted = order(request_id=str(uuid.uuid4()), request_hash="a" * 64)
    together = threading.Barrier(6)

    def create(_: int) -> str:
        together.wait(30)
        return gateway.jobs.create(wanted).job.id

    with ThreadPoolExecutor(6) as threads:
        assert len(set(threads.map(create, range(6)))) == 1
    assert len(gateway.send()) == 1


def test_number_of_open_jobs_is_bounded_exactly(make: Make) -> None:
    gateway = make(open_jobs=5)
    together = threading.Barrier(12)

    def create(_: int) -> bool:
        together.wait(30)
        try:
            gateway.create()
        except OverloadedError as error:
            return error.retry_after < 1
        return True

    with ThreadPoolExecutor(12) as threads:
        assert sum(threads.map(create, range(12))) == 5
    gateway.work()
    gateway.create()


def test_candidates_adapt(make: Make, tiny: ModelFolder) -> None:
    gateway = make(idle_candidates=32)
    idle = gateway.jobs.create(order(candidates=None, n=None)).job
    busy = gateway.jobs.create(order(candidates=None, n=None)).job
    many = gateway.jobs.create(order(candidates=None, n=20)).job
    few = gateway.jobs.create(order(candidates=2, n=None)).job
    assert [(job.candidates, job.parameters["n"]) for job in (idle, busy, many, few)] == [
        (32, 9),
        (16, 9),
        (20, 20),
        (2, 2),
    ]
    gateway.work()
    assert gateway.jobs.create(order(candidates=8, n=3)).job.candidates == 8  # Exactly as many as asked for.


def test_more_pictures_than_candidates_are_refused_and_nothing_is_stored(gateway: GatewayStand) -> None:
    with pytest.raises(InvalidInputError, match="n: 9 pictures"):
        gateway.create(n=9)
    assert gateway.jobs.page(Conditions(), behind=None, limit=10) == []


def test_later_candidates_of_the_same_seed_have_their_own_indices(gateway: GatewayStand) -> None:
    job = gateway.create(first_candidate=16)
    gateway.work()
    assert [picture.candidate for picture in gateway.get(job).pictures] == [23, 22, 21]


def test_kept_rows_are_sent_and_not_counted(gateway: GatewayStand) -> None:
    job, task, generates = begun(gateway, keep_rows=1, given=(1, 2, 3, 4))
    assert task.given == (1, 2, 3, 4)
    gateway.tell(gateway.stages.draw_rows(generates[0], 3))
    running = gateway.get(job).job
    assert (running.rows, running.rows_drawn) == (8 * 3, 4 * 2)


# Sending


def test_no_more_is_sent_than_the_window_holds(make: Make) -> None:
    gateway = make(window=12)
    jobs = [gateway.create() for _ in range(3)]
    first = gateway.send()
    assert [(task.job, len(task.chunks)) for task in first] == [(jobs[0], 2), (jobs[1], 1)]
    assert gateway.send() == []
    gateway.tell(*gateway.stages.run(first[0]))
    second = gateway.send()
    assert [(task.job, [chunk.chunk for chunk in task.chunks]) for task in second] == [
        (jobs[1], [1]),
        (jobs[2], [0]),
    ]


def test_interactive_jobs_go_first_and_batches_get_one_of_eight(make: Make) -> None:
    gateway = make(window=4, chunk=4)
    batch = {gateway.create(priority=Priority.BATCH, candidates=4) for _ in range(4)}
    for _ in range(20):
        gateway.create(candidates=4)
    turns = []
    for _ in range(16):
        (task,) = gateway.send()
        turns.append(task.job in batch)
        gateway.tell(*gateway.stages.run(task))
    assert turns == ([False] * 7 + [True]) * 2


def test_jobs_ahead_are_those_that_are_served_before(gateway: GatewayStand) -> None:
    batch = gateway.create(priority=Priority.BATCH)
    gateway.clock.advance(1)
    gateway.create()
    gateway.clock.advance(1)
    last = gateway.create()
    assert gateway.jobs.get(last).jobs_ahead == 1
    assert gateway.jobs.get(batch).jobs_ahead == 2
    gateway.work()
    assert gateway.jobs.get(last).jobs_ahead is None


def test_what_the_broker_does_not_take_is_sent_when_it_is_back(gateway: GatewayStand) -> None:
    job = gateway.create()
    gateway.outbox.down = True
    with pytest.raises(BrokerUnavailableError):
        gateway.gateway.send()
    other = gateway.create()  # Accepted all the same.
    gateway.outbox.down = False
    sent = gateway.send()
    assert {task.job for task in sent} == {job, other}
    assert gateway.send() == []


def test_gateway_that_dies_before_it_sends_is_made_good_by_another(make: Make, database: Database) -> None:
    first, second = make(), make()
    assert second.send() == []
    job = first.create()
    first.gateway.send()  # What it notes afterwards is lost with it.
    assert second.send() == []
    second.clock.advance(20)
    (again,) = second.send()
    assert (again.job, again.lease) == (job, 2)
    second.create()
    second.gateway.send()
    third = make()
    third.clock.advance(20.1)
    assert len(third.send()) == database.is_sqlite  # There it need not wait: it is the only one.


def test_long_job_is_sent_in_messages_of_the_right_size(make: Make) -> None:
    gateway = make(window=2000, candidates=1024)
    long: dict[str, Any] = {"given": (2**31 - 1,) * 4096, "first_candidate": 10**6}
    gateway.create("ü" * 4000, candidates=1024, n=1, **long)
    tasks = gateway.send()
    assert len(tasks) > 1
    assert sum(len(task.chunks) for task in tasks) == 256
    assert all(len(task.to_json().encode()) <= 64 * 1024 for task in tasks)
    with pytest.raises(InvalidInputError, match="prompt: has too many bytes"):
        gateway.create("\x01" * 4000, candidates=1024, n=1, **long)


def test_two_gateways_send_everything_once(make: Make) -> None:
    gateways = [make(), make()]
    assert [each.send() for each in gateways] == [[], []]
    jobs = {gateways[0].create() for _ in range(10)}
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda each: each.gateway.send(), gateways))
    gateways[0].gateway.send()
    sent = [task.job for each in gateways for task in each.outbox.take()]
    assert sorted(sent) == sorted(jobs)


# Leases


def test_chunk_of_which_nothing_is_heard_is_sent_again_under_a_new_lease(make: Make) -> None:
    gateway = make(lease=100)
    job, task, generates = begun(gateway)
    late = finish_chunk(gateway, generates[1])
    gateway.gateway.ledger.store()
    gateway.clock.advance(60)
    gateway.tell(gateway.stages.draw_rows(generates[0], 2))  # A sign of life of the first chunk.
    gateway.gateway.ledger.store()
    gateway.clock.advance(50)
    (again,) = gateway.send()
    assert [chunk.chunk for chunk in again.chunks] == [1]
    assert again.lease > task.lease
    gateway.tell(late)  # Of the old lease, and as good as any.
    gateway.tell(finish_chunk(gateway, generates[0]))
    assert gateway.state(job) == "succeeded"


def test_lease_is_twice_as_long_after_every_loss_and_ends_with_the_attempts(make: Make) -> None:
    gateway = make(lease=100, attempts=3)
    job, _, _ = begun(gateway, time_limit=10_000.0)
    for seconds in (100, 200):
        gateway.clock.advance(seconds - 1)
        assert gateway.send() == []
        gateway.clock.advance(1)
        (again,) = gateway.send()
        gateway.tell(gateway.stages.encode(again)[1])
    gateway.clock.advance(400)
    assert gateway.send() == []
    failed = gateway.get(job)
    assert failed.job.state is State.FAILED
    assert type(failure(failed)).__name__ == "AttemptsExhaustedError"
    assert "begun 3 times" in str(failure(failed))


def test_chunk_that_nobody_begins_is_sent_again_until_its_time_is_over(make: Make) -> None:
    gateway = make(lease=10, attempts=2)
    job = gateway.create(time_limit=5000.0)
    sent = 0
    for _ in range(499):
        gateway.clock.advance(10)
        sent += len(gateway.send())
    assert 6 <= sent <= 15  # Less and less often.
    assert gateway.state(job) == "queued"
    gateway.pass_time(10)
    assert gateway.state(job) == "expired"


def test_failure_of_an_old_lease_is_passed_over(make: Make) -> None:
    gateway = make(lease=100)
    job, _, generates = begun(gateway)
    gateway.clock.advance(100)
    assert len(gateway.send()) == 1
    gateway.tell(generates[0].failed(FailureReason.POISON, "two workers ended"))
    assert gateway.state(job) == "running"


def test_what_a_stage_gives_up_is_tried_again_later(make: Make) -> None:
    gateway = make(retry=5, attempts=2)
    job, _, generates = begun(gateway)
    gateway.tell(generates[0].failed(FailureReason.EXHAUSTED, "the store is away"))
    assert gateway.send() == []
    gateway.clock.advance(5)
    (again,) = gateway.send()
    assert [chunk.chunk for chunk in again.chunks] == [0]
    gateway.tell(gateway.stages.encode(again)[0][0].failed(FailureReason.EXHAUSTED, "the store is away"))
    gateway.clock.advance(10)
    assert gateway.send() == []
    failed = gateway.get(job)
    assert failed.job.state is State.FAILED
    assert "generate: the store is away" in str(failure(failed))


class AwayStore(MemoryStore):
    """A store that can be away, or full."""

    away = False
    full = False

    def stat(self, key: str) -> Any:
        if self.away:
            raise StoreUnavailableError("it is away")
        return super().stat(key)

    def get(self, key: str, *, sha256: str | None = None) -> bytes:
        if self.away:
            raise StoreUnavailableError("it is away")
        return super().get(key, sha256=sha256)

    def put(self, key: str, content: bytes, *, content_type: str = "") -> ObjectRef:
        if self.away or self.full:
            raise StoreUnavailableError("it is away or full")
        return super().put(key, content)

    def check(self) -> None:
        self.put("writable", b"yes")


@pytest.mark.parametrize("trouble", ["away", "full"])
def test_nothing_is_blamed_for_being_late_while_the_store_is_away(make: Make, trouble: str) -> None:
    store = AwayStore()
    gateway = make(store=store, lease=10, retry=5, attempts=2)
    job, _, _ = begun(gateway)
    setattr(store, trouble, True)
    for _ in range(10):
        gateway.clock.advance(20)
        assert gateway.send() == []
    setattr(store, trouble, False)
    gateway.clock.advance(20)
    assert len(gateway.send()) == 1
    assert gateway.state(job) == "running"


# Ends


@pytest.mark.parametrize(
    ("reason", "error", "text"),
    [
        (FailureReason.INVALID, InvalidInputError, "parameters.prompt: it is bad"),
        (FailureReason.MODEL, None, "prompt: it is bad"),
        (FailureReason.POISON, None, "generate: prompt: it is bad"),
    ],
)
def test_failure_of_one_chunk_fails_the_job(
    gateway: GatewayStand, reason: FailureReason, error: type | None, text: str
) -> None:
    job, _, generates = begun(gateway)
    gateway.tell(generates[1].failed(reason, "prompt: it is bad"))
    failed = gateway.get(job)
    assert failed.job.state is State.FAILED
    names = {FailureReason.MODEL: "ModelMismatchError", FailureReason.POISON: "AttemptsExhaustedError"}
    assert type(failure(failed)).__name__ == names.get(reason, "InvalidInputError")
    assert str(failure(failed)) == text
    gateway.tell(*(finish_chunk(gateway, generate) for generate in generates))
    assert gateway.state(job) == "failed"
    assert gateway.send() == []


def test_job_is_cancelled_in_every_state(gateway: GatewayStand) -> None:
    waiting = gateway.create()
    assert gateway.gateway.cancel(waiting).job.state is State.CANCELLED
    assert gateway.send() == []
    sent = gateway.create()
    (task,) = gateway.send()
    gateway.gateway.cancel(sent)
    gateway.tell(*gateway.stages.run(task))
    running, _, generates = begun(gateway)
    gateway.gateway.cancel(running)
    gateway.tell(*(finish_chunk(gateway, generate) for generate in generates))
    for job in (waiting, sent, running):
        assert gateway.state(job) == "cancelled"
        assert b"cancelled" in gateway.store.get(JobKeys(job).cancelled)
        version = gateway.get(job).job.version
        assert gateway.gateway.cancel(job).job.version == version
    done = gateway.create()
    gateway.work()
    assert gateway.gateway.cancel(done).job.state is State.SUCCEEDED
    assert gateway.store.stat(JobKeys(done).cancelled) is None
    with pytest.raises(JobNotFoundError):
        gateway.gateway.cancel("nobody")


def test_cancelled_while_the_store_is_away_is_told_when_it_is_back(make: Make) -> None:
    store = AwayStore()
    gateway = make(store=store)
    job, _, _ = begun(gateway)
    store.away = True
    assert gateway.gateway.cancel(job).job.state is State.CANCELLED
    gateway.gateway.tidy()
    store.away = False
    gateway.pass_time(10)
    assert store.stat(JobKeys(job).cancelled) is not None


def test_cancel_and_success_at_the_same_time_end_the_job_once(gateway: GatewayStand) -> None:
    ends = set()
    for _ in range(10):
        job, _, generates = begun(gateway)
        gateway.tell(finish_chunk(gateway, generates[0]))
        last = finish_chunk(gateway, generates[1])
        together = threading.Barrier(2)

        def tell(event: StageDone = last, together: threading.Barrier = together) -> None:
            together.wait(30)
            gateway.tell(event)

        with ThreadPoolExecutor(2) as threads:
            told = threads.submit(tell)
            together.wait(30)
            answer = gateway.gateway.cancel(job)
            told.result()
        ended = gateway.get(job)
        assert ended.job.state in (State.SUCCEEDED, State.CANCELLED)
        assert answer.job.state is ended.job.state
        assert bool(ended.pictures) == (ended.job.state is State.SUCCEEDED)
        ends.add(ended.job.state)
    assert ends


def test_job_expires(gateway: GatewayStand) -> None:
    running, _, generates = begun(gateway, time_limit=30.0)
    waiting = gateway.create(time_limit=30.0)
    longer = gateway.create(time_limit=31.0)
    gateway.pass_time(29.9)
    assert gateway.state(waiting) == "queued"
    gateway.pass_time(0.1)
    for job in (waiting, running):
        assert gateway.state(job) == "expired"
        assert b"expired" in gateway.store.get(JobKeys(job).cancelled)
    gateway.tell(*(finish_chunk(gateway, generate) for generate in generates))
    assert gateway.state(running) == "expired"
    assert gateway.state(longer) == "queued"


def test_expiry_that_a_worker_saw_counts_when_the_gateway_sees_it_too(gateway: GatewayStand) -> None:
    job, _, generates = begun(gateway, time_limit=30.0)
    gateway.tell(generates[0].failed(FailureReason.EXPIRED, "its clock is fast"))
    assert gateway.state(job) == "running"
    gateway.clock.advance(30)
    gateway.tell(generates[0].failed(FailureReason.EXPIRED, "it expired"))
    assert gateway.state(job) == "expired"


# The object store


def test_only_pictures_and_result_are_left_of_a_job(gateway: GatewayStand) -> None:
    job, _, generates = begun(gateway)
    gateway.tell(*(finish_chunk(gateway, generate) for generate in generates))
    gateway.gateway.tidy()
    kept = [*(f"candidates/{index}.png" for index in range(8)), "result.json"]
    assert gateway.objects() == kept
    finish_chunk(gateway, generates[0])  # A duplicate that writes late.
    assert len(gateway.objects()) > len(kept)
    gateway.pass_time(1100)
    assert gateway.objects() == kept
    assert gateway.state(job) == "succeeded"


def test_nothing_is_left_of_a_cancelled_job_once_its_messages_have_expired(gateway: GatewayStand) -> None:
    job, _, generates = begun(gateway)
    gateway.gateway.cancel(job)
    gateway.gateway.tidy()
    assert gateway.objects() == ["cancelled.json"]
    finish_chunk(gateway, generates[0])
    gateway.pass_time(900)
    assert "cancelled.json" in gateway.objects()  # A message may still come.
    gateway.pass_time(200)
    assert gateway.objects() == []


def test_job_is_deleted_with_its_pictures_after_its_retention(gateway: GatewayStand) -> None:
    wanted = order(
        retention=2000.0, labels={"user": "me"}, request_id=str(uuid.uuid4()), request_hash="a" * 64
    )
    job = gateway.jobs.create(wanted).job.id
    other = gateway.create(retention=3000.0)
    gateway.work()
    gateway.pass_time(1999)
    assert gateway.state(job) == "succeeded"
    gateway.pass_time(1)
    with pytest.raises(JobNotFoundError):
        gateway.jobs.get(job)
    assert list(gateway.store.objects(JobKeys(job).folder)) == []
    assert gateway.state(other) == "succeeded"
    assert gateway.jobs.create(wanted).job.id != job  # Its request_id is forgotten with it.


def test_what_is_written_after_a_job_was_deleted_is_deleted_too(gateway: GatewayStand) -> None:
    job, _, generates = begun(gateway, retention=60.0, time_limit=1000.0)
    gateway.gateway.cancel(job)
    gateway.pass_time(60)
    assert gateway.objects() == ["cancelled.json"]
    finish_chunk(gateway, generates[0])
    gateway.pass_time(1100)
    assert gateway.objects() == []


def test_objects_that_no_job_knows_expire(gateway: GatewayStand) -> None:
    gateway.store.put("jobs/nobody/result.json", b"{}")
    gateway.clock.now = time.time() + 6 * 86_400
    gateway.gateway.expire_objects()
    assert gateway.objects() == ["result.json"]
    gateway.clock.advance(2 * 86_400)
    gateway.gateway.expire_objects()
    assert gateway.objects() == []


@pytest.mark.parametrize("harm", ["missing", "damaged", "other candidates"])
def test_scores_that_cannot_be_used_are_made_again(gateway: GatewayStand, harm: str) -> None:
    job, _, generates = begun(gateway)
    gateway.tell(finish_chunk(gateway, generates[0]))
    event = finish_chunk(gateway, generates[1])
    keys = JobKeys(job)
    if harm == "missing":
        gateway.store.delete(keys.scores(1))
    elif harm == "damaged":
        gateway.store.put(keys.scores(1), b"{}")
    else:
        ref = gateway.store.put(keys.scores(1), gateway.store.get(keys.scores(0)))
        event = event.model_copy(update={"objects": (ref,)})
    gateway.tell(event)
    assert gateway.store.stat(keys.scores(1)) is None
    (again,) = gateway.send()
    assert [chunk.chunk for chunk in again.chunks] == [1]
    gateway.tell(*gateway.stages.run(again))
    assert gateway.state(job) == "succeeded"


def test_tokens_that_are_gone_at_the_end_are_made_again(gateway: GatewayStand) -> None:
    job, _, generates = begun(gateway)
    gateway.tell(finish_chunk(gateway, generates[0]))
    last = finish_chunk(gateway, generates[1])
    assert gateway.get(job).job.drawn == 8
    gateway.store.delete(JobKeys(job).tokens(1))
    gateway.tell(last)
    running = gateway.get(job).job
    assert (running.state, running.ranked, running.drawn, running.rows_drawn) == (State.RUNNING, 4, 4, 16)
    (again,) = gateway.send()
    gateway.tell(*gateway.stages.run(again))
    ended = gateway.get(job)
    assert (ended.job.state, ended.job.ranked) == (State.SUCCEEDED, 8)
    assert [picture.candidate for picture in ended.pictures] == [7, 6, 5]


def test_job_whose_result_cannot_be_written_ends_when_the_store_is_back(make: Make) -> None:
    store = AwayStore()
    gateway = make(store=store)
    job, _, generates = begun(gateway)
    gateway.tell(finish_chunk(gateway, generates[0]))
    last = finish_chunk(gateway, generates[1])
    put, store.put = store.put, AwayStore().put  # type: ignore[method-assign]
    store.put.__self__.away = True  # type: ignore[attr-defined]
    with pytest.raises(StoreUnavailableError):
        gateway.tell(last)
    assert gateway.state(job) == "running"
    store.put = put  # type: ignore[method-assign]
    gateway.pass_time(1)
    assert gateway.state(job) == "succeeded"


@pytest.mark.skipif(
    PostgresServer.programs() is None and "CI" not in os.environ, reason="PostgreSQL is not installed"
)
def test_database_that_comes_back_is_used_again(postgres: PostgresServer, sizes: Sizes) -> None:
    with emptied(Database(postgres.url, timeout=1)) as database:
        gateway = GatewayStand(database, sizes)
        job = gateway.create()
        postgres.stop()
        with pytest.raises(DatabaseUnavailableError) as unavailable:
            gateway.create()
        assert unavailable.value.retry_after
        with pytest.raises(DatabaseUnavailableError):
            gateway.gateway.send()
        postgres.start()
        gateway.work()
        assert gateway.state(job) == "succeeded"
        assert len(gateway.jobs.page(Conditions(), behind=None, limit=10)) == 1
        gateway.close()


# Lists


def test_list_goes_on_where_it_was_whatever_is_created(gateway: GatewayStand) -> None:
    jobs = []
    for number in range(7):
        jobs.append(gateway.jobs.create(order()).job.id)
        gateway.clock.advance(number // 4)  # The first four at the same time.
    expected = [snapshot.job.id for snapshot in gateway.jobs.page(Conditions(), behind=None, limit=100)]
    assert sorted(expected) == sorted(jobs)
    seen: list[str] = []
    behind = None
    while page := gateway.jobs.page(Conditions(), behind=behind, limit=3):
        seen += [snapshot.job.id for snapshot in page]
        behind = Position(page[-1].job.created, page[-1].job.id)
        gateway.clock.advance(1)
        gateway.create()
    assert seen == expected


def test_list_has_the_jobs_that_meet_all_conditions(gateway: GatewayStand) -> None:
    def found(**conditions: Any) -> list[Job]:
        page = gateway.jobs.page(Conditions(**conditions), behind=None, limit=100)
        return [snapshot.job for snapshot in page]

    red = gateway.create(labels={"colour": "red", "size": "big"})
    gateway.work()
    gateway.clock.advance(10)
    since = round(gateway.clock() * 1e6)
    blue = gateway.create(labels={"colour": "blue", "size": "big"})
    assert [job.id for job in found(labels={"size": "big"})] == [blue, red]
    assert [job.id for job in found(labels={"size": "big", "colour": "red"})] == [red]
    assert [job.id for job in found(states=(State.QUEUED, State.RUNNING))] == [blue]
    assert [job.id for job in found(created_since=since)] == [blue]
    assert [job.id for job in found(created_before=since)] == [red]
    assert found(labels={"colour": "green"}) == []
