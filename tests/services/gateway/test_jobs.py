"""Jobs without gRPC, on SQLite and PostgreSQL; the test acts as the stages."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from harness.gateway import GatewayHarness, MakeGateway, encoded_job, finish_chunk, job_spec
from smalti.errors import InvalidInputError, OverloadedError, RequestIdReusedError
from smalti.messages import FailureReason
from smalti.registry.folder import ModelFolder
from smalti.results import ResultFile
from smalti.services.gateway.database.tables import Job, JobState, PageCursor
from smalti.services.gateway.jobs.observer import JobObserver
from smalti.services.gateway.jobs.repository import JobFilter
from smalti.storage import JobKeys
from smalti.testing.stages import picture_bytes

# From the request to the pictures


def test_job_runs_from_queued_to_succeeded(gateway: GatewayHarness) -> None:
    job = gateway.create()
    assert gateway.state(job) == "queued"
    (task,) = gateway.send()
    assert [chunk.candidates for chunk in task.chunks] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert gateway.state(job) == "queued"  # It is sent, but no stage has begun.
    generates, event = gateway.stages.encode(task)
    gateway.handle(event)
    running = gateway.get(job).job
    assert (running.state, running.prompt_encoded, running.prompt_reading) == (
        JobState.RUNNING,
        True,
        {"drawn": "a cat", "cut": False, "unknown": [], "left_out": [], "notice": "", "text_tokens": 4},
    )
    gateway.handle(gateway.stages.draw_rows(generates[1], 3))
    assert gateway.get(job).job.rows_drawn == 4 * 3
    gateway.handle(finish_chunk(gateway, generates[1]))
    half = gateway.get(job).job
    assert (
        half.rows,
        half.rows_drawn,
        half.candidates_generated,
        half.candidates_decoded,
        half.candidates_ranked,
    ) == (32, 16, 4, 4, 4)
    assert half.state is JobState.RUNNING
    gateway.handle(finish_chunk(gateway, generates[0]))
    ended = gateway.get(job)
    assert ended.job.state is JobState.SUCCEEDED
    assert [picture.candidate for picture in ended.pictures] == [7, 6, 5]
    assert [picture.rank for picture in ended.pictures] == [0, 1, 2]
    assert ended.job.ended == ended.job.delete_at - 5_000_000_000  # type: ignore[operator]


def test_observers_hear_once_how_long_the_first_rows_of_a_job_took(gateway: GatewayHarness) -> None:
    heard: list[float] = []

    class Listener(JobObserver):
        def rows_began(self, seconds: float) -> None:
            heard.append(seconds)

    gateway.job_events.subscribe(Listener())
    gateway.create()
    (task,) = gateway.send()
    generates, event = gateway.stages.encode(task)
    gateway.clock.advance(5)
    gateway.handle(event)
    gateway.gateway.progress.store()
    assert heard == []
    gateway.clock.advance(2.5)
    for rows in (1, 2):
        gateway.handle(gateway.stages.draw_rows(generates[0], rows))
    gateway.handle(gateway.stages.draw_rows(generates[1], 1))
    gateway.gateway.progress.store()
    gateway.handle(gateway.stages.draw_rows(generates[1], 2))
    gateway.gateway.progress.store()
    assert heard == [pytest.approx(7.5)]


def test_result_has_all_that_is_needed_to_continue_a_picture(
    gateway: GatewayHarness, tiny: ModelFolder
) -> None:
    job = gateway.create()
    gateway.run_jobs()
    key = JobKeys(job).result
    result = ResultFile.parse(key, gateway.store.get(key))
    assert (result.prompt, result.seed, result.revision, result.candidates) == ("a cat", 7, tiny.revision, 8)
    assert [(picture.index, picture.tokens) for picture in result.pictures] == [
        (index, (index,) * 16) for index in (7, 6, 5)
    ]
    assert gateway.store.get(result.pictures[0].key, sha256=result.pictures[0].sha256) == picture_bytes(7, 7)


def test_equal_scores_keep_the_order_of_the_candidates(gateway: GatewayHarness) -> None:
    gateway.stages.score = lambda index: 0.5 if index % 2 else 0.25
    job = gateway.create(n=6)
    gateway.run_jobs()
    assert [picture.candidate for picture in gateway.get(job).pictures] == [1, 3, 5, 7, 0, 2]


def test_pictures_have_the_order_of_the_ranker(gateway: GatewayHarness) -> None:
    from smalti.selection import best

    scores = [0.3, -0.1, 0.3, 0.7, 0.0, -0.0, 0.7, 0.1]
    gateway.stages.score = scores.__getitem__
    job = gateway.create(n=8)
    gateway.run_jobs()
    assert [picture.candidate for picture in gateway.get(job).pictures] == best(scores, 8)


def test_duplicate_late_and_reordered_events_change_nothing(gateway: GatewayHarness) -> None:
    job = gateway.create()
    (task,) = gateway.send()
    events = list(gateway.stages.run(task))
    gateway.handle(*reversed(events))
    ended = gateway.get(job)
    assert ended.job.state is JobState.SUCCEEDED
    assert (ended.job.candidates_generated, ended.job.candidates_decoded, ended.job.candidates_ranked) == (
        8,
        8,
        8,
    )
    gateway.handle(*events, task.failed(FailureReason.INVALID, "prompt: too late"))
    again = gateway.get(job)
    assert again.job.version == ended.job.version
    assert [picture.candidate for picture in again.pictures] == [7, 6, 5]


def test_every_change_increases_the_version(gateway: GatewayHarness) -> None:
    job = gateway.create()
    versions = [gateway.get(job).job.version]
    (task,) = gateway.send()
    for event in gateway.stages.run(task):
        gateway.handle(event)
        versions.append(gateway.get(job).job.version)
    assert versions == sorted(set(versions))


def test_concurrent_events_of_the_last_chunk_end_the_job_once(gateway: GatewayHarness) -> None:
    job, _, generates = encoded_job(gateway)
    gateway.handle(finish_chunk(gateway, generates[0]))
    last = finish_chunk(gateway, generates[1])
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(gateway.handle, [last] * 4))
    ended = gateway.get(job)
    assert (ended.job.state, ended.job.candidates_ranked) == (JobState.SUCCEEDED, 8)
    assert len(ended.pictures) == 3


# Acceptance


def test_repeated_request_returns_the_same_job(gateway: GatewayHarness) -> None:
    wanted = job_spec(request_id=str(uuid.uuid4()), request_hash="a" * 64)
    first = gateway.jobs.create(wanted).job.id
    gateway.run_jobs()
    again = gateway.jobs.create(wanted)
    assert (again.job.id, again.job.state) == (first, JobState.SUCCEEDED)
    assert len(again.pictures) == 3
    with pytest.raises(RequestIdReusedError) as reused:
        gateway.jobs.create(job_spec("a dog", request_id=wanted.request_id, request_hash="b" * 64))
    assert reused.value.name == first


def test_concurrent_repeated_requests_create_one_job(gateway: GatewayHarness) -> None:
    wanted = job_spec(request_id=str(uuid.uuid4()), request_hash="a" * 64)
    together = threading.Barrier(6)

    def create(_: int) -> str:
        together.wait(30)
        return gateway.jobs.create(wanted).job.id

    with ThreadPoolExecutor(6) as threads:
        assert len(set(threads.map(create, range(6)))) == 1
    assert len(gateway.send()) == 1


def test_limit_of_open_jobs_is_exact(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(open_jobs=5)
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
    gateway.run_jobs()
    gateway.create()


def test_default_number_of_candidates_depends_on_the_load(
    make_gateway: MakeGateway, tiny: ModelFolder
) -> None:
    gateway = make_gateway(idle_candidates=32)
    idle = gateway.jobs.create(job_spec(candidates=None, n=None)).job
    busy = gateway.jobs.create(job_spec(candidates=None, n=None)).job
    many = gateway.jobs.create(job_spec(candidates=None, n=20)).job
    few = gateway.jobs.create(job_spec(candidates=2, n=None)).job
    assert [(job.candidates, job.parameters["n"]) for job in (idle, busy, many, few)] == [
        (32, 9),
        (16, 9),
        (20, 20),
        (2, 2),
    ]
    gateway.run_jobs()
    assert (
        gateway.jobs.create(job_spec(candidates=8, n=3)).job.candidates == 8
    )  # Exactly the requested number.


def test_more_pictures_than_candidates_are_refused_and_nothing_is_stored(gateway: GatewayHarness) -> None:
    with pytest.raises(InvalidInputError, match="n: must not be greater than candidates"):
        gateway.create(n=9)
    assert gateway.jobs.page(JobFilter(), after=None, limit=10) == []


def test_later_candidates_of_the_same_seed_have_their_own_indices(gateway: GatewayHarness) -> None:
    job = gateway.create(first_candidate=16)
    gateway.run_jobs()
    assert [picture.candidate for picture in gateway.get(job).pictures] == [23, 22, 21]


def test_kept_rows_are_sent_but_not_counted(gateway: GatewayHarness) -> None:
    job, task, generates = encoded_job(gateway, given=(1, 2, 3, 4))
    assert task.given == (1, 2, 3, 4)
    gateway.handle(gateway.stages.draw_rows(generates[0], 3))
    running = gateway.get(job).job
    assert (running.rows, running.rows_drawn) == (8 * 3, 4 * 2)


# Lists


def test_pages_continue_while_jobs_are_created(gateway: GatewayHarness) -> None:
    jobs = []
    for number in range(7):
        jobs.append(gateway.jobs.create(job_spec()).job.id)
        gateway.clock.advance(number // 4)  # The first four have the same time.
    expected = [snapshot.job.id for snapshot in gateway.jobs.page(JobFilter(), after=None, limit=100)]
    assert sorted(expected) == sorted(jobs)
    seen: list[str] = []
    after = None
    while page := gateway.jobs.page(JobFilter(), after=after, limit=3):
        seen += [snapshot.job.id for snapshot in page]
        after = PageCursor(page[-1].job.created, page[-1].job.id)
        gateway.clock.advance(1)
        gateway.create()
    assert seen == expected


def test_list_returns_the_jobs_that_match_all_filters(gateway: GatewayHarness) -> None:
    def found(**conditions: Any) -> list[Job]:
        page = gateway.jobs.page(JobFilter(**conditions), after=None, limit=100)
        return [snapshot.job for snapshot in page]

    red = gateway.create(labels={"colour": "red", "size": "big"})
    gateway.run_jobs()
    gateway.clock.advance(10)
    since = round(gateway.clock() * 1e6)
    blue = gateway.create(labels={"colour": "blue", "size": "big"})
    assert [job.id for job in found(labels={"size": "big"})] == [blue, red]
    assert [job.id for job in found(labels={"size": "big", "colour": "red"})] == [red]
    assert [job.id for job in found(states=(JobState.QUEUED, JobState.RUNNING))] == [blue]
    assert [job.id for job in found(created_since=since)] == [blue]
    assert [job.id for job in found(created_before=since)] == [red]
    assert found(labels={"colour": "green"}) == []
