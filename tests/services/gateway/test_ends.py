"""How jobs end, and what remains of them."""

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.gateway import (
    FaultyStore,
    GatewayHarness,
    MakeGateway,
    emptied_database,
    encoded_job,
    failure,
    finish_chunk,
    job_spec,
)
from harness.objects import delete_named, get_named, put_named
from harness.servers import PostgresServer
from smalti.errors import DatabaseUnavailableError, InvalidInputError, JobNotFoundError, StoreUnavailableError
from smalti.messages import FailureReason, StageDone
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.services.gateway.database.clock import ManualClock
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import JobState
from smalti.services.gateway.jobs.repository import JobFilter
from smalti.services.gateway.work.sweeper import CLAIM_SECONDS
from smalti.storage import JobKeys, MemoryStore, ObjectRef
from tests.services.gateway.conftest import needs_postgres

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
    gateway: GatewayHarness, reason: FailureReason, error: type | None, text: str
) -> None:
    job, _, generates = encoded_job(gateway)
    gateway.handle(generates[1].failed(reason, "prompt: it is bad"))
    failed = gateway.get(job)
    assert failed.job.state is JobState.FAILED
    names = {FailureReason.MODEL: "ModelMismatchError", FailureReason.POISON: "AttemptsExhaustedError"}
    assert type(failure(failed)).__name__ == names.get(reason, "InvalidInputError")
    assert str(failure(failed)) == text
    gateway.handle(*(finish_chunk(gateway, generate) for generate in generates))
    assert gateway.state(job) == "failed"
    assert gateway.send() == []


def test_open_job_can_be_cancelled_in_every_state(gateway: GatewayHarness) -> None:
    waiting = gateway.create()
    assert gateway.cancel(waiting).job.state is JobState.CANCELLED
    assert gateway.send() == []
    sent = gateway.create()
    (task,) = gateway.send()
    gateway.cancel(sent)
    gateway.handle(*gateway.stages.run(task))
    running, _, generates = encoded_job(gateway)
    gateway.cancel(running)
    gateway.handle(*(finish_chunk(gateway, generate) for generate in generates))
    for job in (waiting, sent, running):
        assert gateway.state(job) == "cancelled"
        assert b"cancelled" in gateway.store.get(JobKeys(job).cancelled)
        version = gateway.get(job).job.version
        assert gateway.cancel(job).job.version == version
    done = gateway.create()
    gateway.run_jobs()
    assert gateway.cancel(done).job.state is JobState.SUCCEEDED
    assert gateway.store.stat(JobKeys(done).cancelled) is None
    with pytest.raises(JobNotFoundError):
        gateway.cancel("nobody")


def test_marker_is_written_once_the_store_is_back(make_gateway: MakeGateway) -> None:
    store = FaultyStore()
    gateway = make_gateway(store=store)
    job, _, _ = encoded_job(gateway)
    store.unavailable = True
    assert gateway.cancel(job).job.state is JobState.CANCELLED
    gateway.gateway.run_store_tasks()
    store.unavailable = False
    gateway.pass_time(10)
    assert store.stat(JobKeys(job).cancelled) is not None


def test_cancel_and_success_at_the_same_time_end_the_job_once(gateway: GatewayHarness) -> None:
    ends = set()
    for _ in range(10):
        job, _, generates = encoded_job(gateway)
        gateway.handle(finish_chunk(gateway, generates[0]))
        last = finish_chunk(gateway, generates[1])
        together = threading.Barrier(2)

        def tell(event: StageDone = last, together: threading.Barrier = together) -> None:
            together.wait(30)
            gateway.handle(event)

        with ThreadPoolExecutor(2) as threads:
            told = threads.submit(tell)
            together.wait(30)
            answer = gateway.cancel(job)
            told.result()
        ended = gateway.get(job)
        assert ended.job.state in (JobState.SUCCEEDED, JobState.CANCELLED)
        assert answer.job.state is ended.job.state
        assert bool(ended.pictures) == (ended.job.state is JobState.SUCCEEDED)
        ends.add(ended.job.state)
    assert ends


def test_job_expires(gateway: GatewayHarness) -> None:
    running, _, generates = encoded_job(gateway, time_limit=30.0)
    waiting = gateway.create(time_limit=30.0)
    longer = gateway.create(time_limit=31.0)
    gateway.pass_time(29.9)
    assert gateway.state(waiting) == "queued"
    gateway.pass_time(0.1)
    for job in (waiting, running):
        assert gateway.state(job) == "expired"
        assert b"expired" in gateway.store.get(JobKeys(job).cancelled)
    gateway.handle(*(finish_chunk(gateway, generate) for generate in generates))
    assert gateway.state(running) == "expired"
    assert gateway.state(longer) == "queued"


def test_expiry_reported_by_a_worker_counts_once_the_gateway_agrees(gateway: GatewayHarness) -> None:
    job, _, generates = encoded_job(gateway, time_limit=30.0)
    gateway.handle(generates[0].failed(FailureReason.EXPIRED, "its clock is fast"))
    assert gateway.state(job) == "running"
    gateway.clock.advance(30)
    gateway.handle(generates[0].failed(FailureReason.EXPIRED, "it expired"))
    assert gateway.state(job) == "expired"


# The object store, the database


def test_only_pictures_and_result_remain_of_a_job(gateway: GatewayHarness) -> None:
    job, _, generates = encoded_job(gateway)
    gateway.handle(*(finish_chunk(gateway, generate) for generate in generates))
    gateway.gateway.run_store_tasks()
    kept = [*(f"candidates/{index}.png" for index in range(8)), "result.json"]
    assert gateway.objects() == kept
    finish_chunk(gateway, generates[0])  # A duplicate message is handled late.
    assert len(gateway.objects()) > len(kept)
    gateway.pass_time(1400)
    assert gateway.objects() == kept
    assert gateway.state(job) == "succeeded"


def test_nothing_remains_of_a_cancelled_job_after_its_messages_have_expired(gateway: GatewayHarness) -> None:
    job, _, generates = encoded_job(gateway)
    gateway.cancel(job)
    gateway.gateway.run_store_tasks()
    assert gateway.objects() == ["cancelled.json"]
    finish_chunk(gateway, generates[0])
    gateway.pass_time(900)
    assert "cancelled.json" in gateway.objects()  # A message may still be delivered.
    gateway.pass_time(500)
    assert gateway.objects() == []


def test_job_is_deleted_with_its_pictures_after_its_retention(gateway: GatewayHarness) -> None:
    wanted = job_spec(
        retention=2000.0, labels={"user": "me"}, request_id=str(uuid.uuid4()), request_hash="a" * 64
    )
    job = gateway.jobs.create(wanted).job.id
    other = gateway.create(retention=3000.0)
    gateway.run_jobs()
    gateway.pass_time(1999)
    assert gateway.state(job) == "succeeded"
    gateway.pass_time(1)
    with pytest.raises(JobNotFoundError):
        gateway.jobs.get(job)
    assert list(gateway.store.objects(JobKeys(job).folder)) == []
    assert gateway.state(other) == "succeeded"
    assert gateway.jobs.create(wanted).job.id != job  # Its request_id was deleted too.


def test_user_deletes_an_open_job_and_one_that_has_ended(gateway: GatewayHarness) -> None:
    done = gateway.create()
    gateway.run_jobs()
    running, _, generates = encoded_job(gateway)
    for job in (done, running):
        gateway.delete(job)
        with pytest.raises(JobNotFoundError):
            gateway.delete(job)
    gateway.gateway.run_store_tasks()
    # The marker stops the stages, which may still be at work.
    assert [info.key for info in gateway.store.objects()] == [JobKeys(running).cancelled]
    gateway.handle(finish_chunk(gateway, generates[0]))
    gateway.pass_time(1400)
    assert gateway.objects() == []


def test_marker_of_a_deleted_job_is_written_once_the_store_is_back(make_gateway: MakeGateway) -> None:
    store = FaultyStore()
    gateway = make_gateway(store=store)
    job, _, _ = encoded_job(gateway)
    store.unavailable = True
    gateway.delete(job)
    store.unavailable = False
    gateway.gateway.run_store_tasks()
    assert store.stat(JobKeys(job).cancelled) is not None


def test_objects_written_after_a_job_was_deleted_are_deleted_too(gateway: GatewayHarness) -> None:
    job, _, generates = encoded_job(gateway, retention=60.0, time_limit=1000.0)
    gateway.cancel(job)
    gateway.pass_time(60)
    assert gateway.objects() == ["cancelled.json"]
    finish_chunk(gateway, generates[0])
    gateway.pass_time(1400)
    assert gateway.objects() == []


def test_objects_without_a_job_expire(gateway: GatewayHarness) -> None:
    gateway.store.put("jobs/nobody/result.json", b"{}")
    gateway.clock.now = time.time() + 6 * 86_400
    gateway.gateway.expire_objects()
    assert gateway.objects() == ["result.json"]
    gateway.clock.advance(2 * 86_400)
    gateway.gateway.expire_objects()
    assert gateway.objects() == []


@pytest.mark.parametrize("harm", ["missing", "damaged", "other candidates"])
def test_unusable_scores_are_made_again(gateway: GatewayHarness, harm: str) -> None:
    job, _, generates = encoded_job(gateway)
    gateway.handle(finish_chunk(gateway, generates[0]))
    event = finish_chunk(gateway, generates[1])
    keys = JobKeys(job)
    scores = event.objects[0]
    if harm == "missing":
        gateway.store.delete(scores.key)
    elif harm == "damaged":
        gateway.store.put(scores.key, b"{}")
    else:
        scores = put_named(gateway.store, keys.scores(1), get_named(gateway.store, keys.scores(0)))
        event = event.model_copy(update={"objects": (scores,)})
    gateway.handle(event)
    assert gateway.store.stat(scores.key) is None
    (again,) = gateway.send()
    assert [chunk.chunk for chunk in again.chunks] == [1]
    gateway.handle(*gateway.stages.run(again))
    assert gateway.state(job) == "succeeded"


def test_lost_tokens_are_made_again(gateway: GatewayHarness) -> None:
    job, _, generates = encoded_job(gateway)
    gateway.handle(finish_chunk(gateway, generates[0]))
    last = finish_chunk(gateway, generates[1])
    assert gateway.get(job).job.candidates_generated == 8
    delete_named(gateway.store, JobKeys(job).tokens(1))
    gateway.handle(last)
    running = gateway.get(job).job
    assert (running.state, running.candidates_ranked, running.candidates_generated, running.rows_drawn) == (
        JobState.RUNNING,
        4,
        4,
        16,
    )
    (again,) = gateway.send()
    gateway.handle(*gateway.stages.run(again))
    ended = gateway.get(job)
    assert (ended.job.state, ended.job.candidates_ranked) == (JobState.SUCCEEDED, 8)
    assert [picture.candidate for picture in ended.pictures] == [7, 6, 5]


def test_job_whose_result_cannot_be_written_ends_when_the_store_is_back(make_gateway: MakeGateway) -> None:
    store = FaultyStore()
    gateway = make_gateway(store=store)
    job, _, generates = encoded_job(gateway)
    gateway.handle(finish_chunk(gateway, generates[0]))
    last = finish_chunk(gateway, generates[1])
    put, store.put = store.put, FaultyStore().put  # type: ignore[method-assign]
    store.put.__self__.unavailable = True  # type: ignore[attr-defined]
    with pytest.raises(StoreUnavailableError):
        gateway.handle(last)
    assert gateway.state(job) == "running"
    store.put = put  # type: ignore[method-assign]
    gateway.pass_time(1)
    assert gateway.state(job) == "succeeded"


@needs_postgres
def test_database_is_used_again_after_an_outage(postgres: PostgresServer, tiny: ModelFolder) -> None:
    with emptied_database(Database(postgres.url, timeout=1)) as database:
        gateway = GatewayHarness(database, ModelSpec.load(tiny))
        job = gateway.create()
        postgres.stop()
        with pytest.raises(DatabaseUnavailableError) as unavailable:
            gateway.create()
        assert unavailable.value.retry_after
        with pytest.raises(DatabaseUnavailableError):
            gateway.gateway.send()
        postgres.start()
        gateway.run_jobs()
        assert gateway.state(job) == "succeeded"
        assert len(gateway.jobs.page(JobFilter(), after=None, limit=10)) == 1
        gateway.close()


class PausingStore(MemoryStore):
    """A store with which a gateway is suspended while it writes."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self._meanwhile = [meanwhile]

    def put(self, key: str, content: bytes, *, content_type: str = "") -> ObjectRef:
        """Lets others work once, then writes."""
        if self._meanwhile:
            self._meanwhile.pop()()
        return super().put(key, content)


def test_task_that_another_gateway_has_claimed_since_is_left_to_it(make_gateway: MakeGateway) -> None:
    away = FaultyStore()
    away.unavailable = True
    clock = ManualClock()
    second = make_gateway(store=away, clock=clock)

    def meanwhile() -> None:
        clock.advance(CLAIM_SECONDS + 1)
        second.gateway.run_store_tasks()  # It fails, and tries again later.

    first = make_gateway(store=PausingStore(meanwhile), clock=clock)
    job = first.jobs.cancel(first.create()).job.id
    first.gateway.run_store_tasks()
    away.unavailable = False
    clock.advance(60)
    second.gateway.run_store_tasks()
    assert away.stat(f"jobs/{job}/cancelled.json")
