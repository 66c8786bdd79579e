"""The second pass over the chosen pictures: sent after ranking, leased, repeated, and told in the result."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from harness.gateway import GatewayHarness, MakeGateway, encoded_job, failure, finish_chunk
from harness.objects import key_of, name_of
from smalti.errors import AttemptsExhaustedError
from smalti.messages import FailureReason, RefineTask
from smalti.parameters import Refinement, SecondPass
from smalti.registry.folder import ModelFolder
from smalti.results import ResultFile
from smalti.services.gateway.database.tables import JobState
from smalti.storage import JobKeys
from smalti.testing.stages import picture_bytes, refined_bytes

REFINE = SecondPass(upscale=2, refine=Refinement(strength=0.5, steps=3))
ENLARGE = SecondPass(upscale=4)
PLAIN = [f"candidates/{index}.png" for index in range(8)]


@pytest.fixture(scope="session")
def tiny(refining: ModelFolder) -> ModelFolder:
    """The tiny model with a refiner."""
    return refining


def ranked_job(gateway: GatewayHarness, **changes: Any) -> tuple[str, list[RefineTask]]:
    """Creates a job whose candidates are all ranked; returns its id, and the messages for the refiner."""
    job, _, generates = encoded_job(gateway, **{"second_pass": REFINE, **changes})
    gateway.handle(*(finish_chunk(gateway, generate) for generate in generates))
    return job, gateway.send_refining()


def test_chosen_pictures_are_refined_and_named_in_the_result(
    gateway: GatewayHarness, tiny: ModelFolder
) -> None:
    job, (task,) = ranked_job(gateway)
    assert (task.second_pass, task.refiner, task.seed) == (REFINE, tiny.refiner_revision, 7)
    # The three best of the second chunk; each with its row in the tokens of the chunk.
    assert [(each.candidate, each.row) for each in task.pictures] == [(7, 3), (6, 2), (5, 1)]
    for each in task.pictures:
        for ref in (each.picture, each.tokens, each.encoding):
            assert ref is not None
            gateway.store.get(ref.key, sha256=ref.sha256)
    waiting = gateway.get(job)
    assert (waiting.job.state, waiting.pictures) == (JobState.RUNNING, ())
    assert (waiting.job.pictures_to_refine, waiting.job.pictures_refined) == (3, 0)
    gateway.pass_time(1)  # The sweeper does not end it without its refined pictures.
    assert gateway.state(job) == "running"
    gateway.handle(gateway.stages.refine(task))
    ended = gateway.get(job)
    assert (ended.job.state, ended.job.pictures_refined) == (JobState.SUCCEEDED, 3)
    keys = JobKeys(job)
    assert [name_of(picture.key) for picture in ended.pictures] == [
        keys.refined(index) for index in (7, 6, 5)
    ]
    first = ended.pictures[0]
    content = gateway.store.get(first.key, sha256=first.sha256)
    assert content == refined_bytes(picture_bytes(7, 7))
    assert (first.size, first.width, first.height, first.rank) == (len(content), 64, 64, 0)
    result = ResultFile.parse(keys.result, gateway.store.get(keys.result))
    assert (result.second_pass, result.refiner) == (REFINE, tiny.refiner_revision)
    assert [(name_of(picture.key), picture.tokens[0]) for picture in result.pictures] == [
        (keys.refined(index), index) for index in (7, 6, 5)
    ]


def test_job_without_second_pass_is_as_before(gateway: GatewayHarness) -> None:
    job = gateway.create()
    gateway.run_jobs()
    ended = gateway.get(job).job
    assert (ended.state, ended.pictures_to_refine) == (JobState.SUCCEEDED, 0)
    assert b"second_pass" not in gateway.store.get(JobKeys(job).result)
    assert "second_pass" not in ended.parameters
    assert gateway.refine_tasks == []


def test_enlarging_needs_neither_tokens_nor_encoding(gateway: GatewayHarness) -> None:
    job, (task,) = ranked_job(gateway, second_pass=ENLARGE)
    assert task.refiner is None
    assert {(each.tokens, each.encoding) for each in task.pictures} == {(None, None)}
    gateway.handle(gateway.stages.refine(task))
    assert [picture.width for picture in gateway.get(job).pictures] == [128, 128, 128]


def test_pictures_travel_in_chunks_and_in_any_order(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(chunk=2)
    job, tasks = ranked_job(gateway, n=5)
    assert [[each.candidate for each in task.pictures] for task in tasks] == [[7, 6], [5, 4], [3]]
    assert [task.chunk for task in tasks] == [4, 5, 6]
    last, *others = (gateway.stages.refine(task) for task in tasks)
    gateway.handle(*others, *others)
    assert gateway.get(job).job.pictures_refined == 3
    version = gateway.get(job).job.version
    gateway.handle(*others)
    assert gateway.get(job).job.version == version
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(gateway.handle, [last] * 3))
    ended = gateway.get(job)
    assert ended.job.state is JobState.SUCCEEDED
    assert [picture.candidate for picture in ended.pictures] == [7, 6, 5, 4, 3]


def test_lost_message_is_sent_again(gateway: GatewayHarness) -> None:
    job, (task,) = ranked_job(gateway)
    gateway.clock.advance(121)
    (again,) = gateway.send_refining()
    assert (again.pictures, again.lease) == (task.pictures, task.lease + 1)
    # The result of the lost message counts, too: it is the same.
    gateway.handle(gateway.stages.refine(task))
    assert gateway.state(job) == "succeeded"


def test_failures_of_the_refiner_are_repeated_and_then_end_the_job(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(attempts=3, retry=1.0)
    job, tasks = ranked_job(gateway)
    for attempt in range(3):
        (task,) = tasks
        gateway.handle(task.failed(FailureReason.EXHAUSTED, "out of memory", permanent=False))
        gateway.clock.advance(2.0**attempt)
        tasks = gateway.send_refining()
    failed = gateway.get(job)
    assert failed.job.state is JobState.FAILED
    assert isinstance(failure(failed), AttemptsExhaustedError)
    assert "refine: out of memory" in str(failure(failed))
    assert tasks == []


@pytest.mark.parametrize("lost", ["picture", "tokens", "encoding"])
def test_lost_inputs_are_made_again(gateway: GatewayHarness, lost: str) -> None:
    job, (first, second) = ranked_job(gateway, n=5)
    keys = JobKeys(job)
    gateway.handle(gateway.stages.refine(second))
    key = {"picture": keys.candidate(7), "tokens": keys.tokens(1), "encoding": keys.encoding}[lost]
    key = key_of(gateway.store, key)
    gateway.store.delete(key)
    gateway.handle(first.failed(FailureReason.INPUTS, f"{key}: no such object"))
    waiting = gateway.get(job).job
    assert (waiting.candidates_ranked, waiting.pictures_refined, waiting.refining) == (4, 0, False)
    (again,) = gateway.send()
    assert [chunk.chunk for chunk in again.chunks] == [1]
    gateway.handle(*gateway.stages.run(again))
    assert gateway.store.stat(key) is not None
    gateway.run_jobs()
    ended = gateway.get(job)
    assert ended.job.state is JobState.SUCCEEDED
    assert [picture.candidate for picture in ended.pictures] == [7, 6, 5, 4, 3]


@pytest.mark.parametrize("harm", ["missing", "replaced"])
def test_inputs_that_are_harmed_before_the_choice_are_made_again(gateway: GatewayHarness, harm: str) -> None:
    job, _, generates = encoded_job(gateway, second_pass=REFINE)
    events = [finish_chunk(gateway, generate) for generate in generates]
    key = key_of(gateway.store, JobKeys(job).candidate(6))
    before = gateway.store.get(key)
    gateway.get(job)
    if harm == "missing":
        gateway.store.delete(key)
    else:
        gateway.store.put(key, b"something else")
    gateway.handle(*events)
    assert gateway.get(job).job.candidates_ranked == 4
    gateway.run_jobs()
    assert gateway.state(job) == "succeeded"
    assert gateway.store.get(key) == before


def test_refined_picture_that_was_replaced_before_it_was_reported_is_made_again(
    gateway: GatewayHarness,
) -> None:
    job, (task,) = ranked_job(gateway)
    event = gateway.stages.refine(task)
    key = key_of(gateway.store, JobKeys(job).refined(7))
    before = gateway.store.get(key)
    gateway.store.put(key, b"something else")
    gateway.handle(event)
    assert (gateway.state(job), gateway.store.stat(key)) == ("running", None)
    gateway.clock.advance(121)
    (again,) = gateway.send_refining()
    gateway.handle(gateway.stages.refine(again))
    assert (gateway.state(job), gateway.store.get(key)) == ("succeeded", before)
    # A late event of another worker, with other bytes, leaves the pictures of the job alone.
    gateway.handle(
        event.model_copy(
            update={"objects": tuple(ref.model_copy(update={"sha256": "0" * 64}) for ref in event.objects)}
        )
    )
    assert gateway.store.get(key) == before


def test_choice_is_made_after_a_crash_between_ranking_and_choice(gateway: GatewayHarness) -> None:
    job, _, generates = encoded_job(gateway, second_pass=REFINE)
    choose = gateway.gateway.fan_in._refining.choose
    gateway.gateway.fan_in._refining.choose = lambda *_: None  # type: ignore[method-assign]
    gateway.handle(*(finish_chunk(gateway, generate) for generate in generates))
    gateway.gateway.fan_in._refining.choose = choose  # type: ignore[method-assign]
    assert gateway.send_refining() == []
    gateway.pass_time(1)
    (task,) = gateway.send_refining()
    gateway.handle(gateway.stages.refine(task))
    assert gateway.state(job) == "succeeded"


def test_refined_and_plain_pictures_remain(gateway: GatewayHarness) -> None:
    _, (task,) = ranked_job(gateway)
    gateway.handle(gateway.stages.refine(task))
    gateway.pass_time(1400)
    refined = [f"refined/{index}.png" for index in (5, 6, 7)]
    assert gateway.objects() == [*PLAIN, *refined, "result.json"]
    gateway.pass_time(5000)
    gateway.pass_time(5000)
    assert gateway.objects() == []


def test_nothing_remains_of_a_job_that_is_cancelled_while_it_is_refined(gateway: GatewayHarness) -> None:
    job, (task,) = ranked_job(gateway)
    gateway.cancel(job)
    gateway.handle(gateway.stages.refine(task))
    assert gateway.state(job) == "cancelled"
    assert gateway.send_refining() == []
    gateway.pass_time(1400)
    assert gateway.objects() == []
