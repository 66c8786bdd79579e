"""Jobs whose candidates have wordings of their own, and whose pictures differ from each other."""

from typing import Any

import numpy as np
import pytest

from harness.gateway import GatewayHarness, MakeGateway, encoded_job
from harness.gateway_calls import create_job, finished_job, parameters, served
from harness.grpc_server import asynchronous
from harness.objects import key_of, name_of
from smalti.errors import InvalidInputError
from smalti.messages import MAX_IN_CHUNK, FailureReason
from smalti.results import ResultFile
from smalti.services.gateway.database.tables import JobState
from smalti.storage import JobKeys
from smalti.testing.stages import wording

# Every other picture is a copy.
ANGLES = np.deg2rad([0, 0, 20, 20, 40, 40, 90, 90])


def look(index: int) -> np.ndarray:
    return np.array([np.cos(ANGLES[index]), np.sin(ANGLES[index])], np.float32)


def chosen(gateway: GatewayHarness, **changes: Any) -> list[int]:
    """Returns the pictures of a new job, after it has run."""
    job = gateway.create(**changes)
    gateway.run_jobs()
    return [picture.candidate for picture in gateway.get(job).pictures]


def test_varied_job_has_an_encoding_for_each_wording_until_it_ends(gateway: GatewayHarness) -> None:
    job, task, generates = encoded_job(gateway, vary=True)
    assert task.vary
    keys = JobKeys(job)
    found = [info.key for info in gateway.store.objects(keys.folder)]
    assert [name_of(key) for key in found] == sorted(
        keys.encoding_of(wording("a cat", index)) for index in (0, 1)
    )
    assert {ref.key for generate in generates for ref in generate.encodings} == set(found)
    gateway.handle(*gateway.stages.run(task))
    gateway.pass_time(0)
    kept = {"result.json", *(f"candidates/{index}.png" for index in range(8))}
    assert set(gateway.objects()) == kept
    assert gateway.get(job).job.state is JobState.SUCCEEDED


@pytest.mark.parametrize("end", ["cancelled", "failed"])
def test_encodings_are_deleted_however_a_job_ends(gateway: GatewayHarness, end: str) -> None:
    job, task, generates = encoded_job(gateway, vary=True)
    if end == "cancelled":
        gateway.cancel(job)
    else:
        gateway.handle(generates[0].failed(FailureReason.INVALID, "prompt: it is bad"))
    gateway.pass_time(0)
    assert gateway.objects() == ["cancelled.json"]
    # Written late by a worker that had not seen the marker.
    gateway.stages.encode(task)
    gateway.pass_time(2000)
    assert gateway.objects() == []


def test_large_varied_job_is_sent_in_messages_whose_events_are_small(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(window=1024)
    gateway.create(candidates=200, vary=True)
    tasks = gateway.send()
    assert len(tasks) > 1
    sizes = [sum(len(chunk.candidates) for chunk in task.chunks) for task in tasks]
    assert sum(sizes) == 200
    assert max(sizes) <= MAX_IN_CHUNK


def test_pictures_that_differ_are_chosen_before_copies(gateway: GatewayHarness) -> None:
    gateway.stages.features = look
    assert chosen(gateway, n=4) == [7, 6, 5, 4]
    assert chosen(gateway, n=4, diversity=0.5) == [7, 1, 5, 6]
    assert chosen(gateway, n=4, diversity=1.0) == [7, 1, 5, 3]
    job = gateway.create(n=4, diversity=0.5)
    gateway.run_jobs()
    result = ResultFile.parse("", gateway.store.get(JobKeys(job).result))
    assert (result.diversity, result.vary) == (0.5, False)
    assert [picture.index for picture in result.pictures] == [7, 1, 5, 6]


@pytest.mark.parametrize("harm", ["missing", "damaged", "without features"])
def test_lost_features_are_made_again(gateway: GatewayHarness, harm: str) -> None:
    gateway.stages.features = look
    job, _, generates = encoded_job(gateway, n=4, diversity=0.5)
    for generate in generates:
        rank = gateway.stages.decode(gateway.stages.generate(generate)[0])[0]
        if harm == "without features" and generate is generates[0]:
            rank = rank.model_copy(update={"keep_features": False})
        ranked = gateway.stages.rank(rank)
        if generate is generates[-1]:
            # Of the first chunk, whose scores were read before.
            scores = key_of(gateway.store, JobKeys(job).scores(0))
            if harm == "missing":
                gateway.store.delete(scores)
            elif harm == "damaged":
                gateway.store.put(scores, b"{}")
        gateway.handle(ranked)
    assert gateway.state(job) == "running"
    assert gateway.get(job).job.candidates_ranked < 8
    gateway.run_jobs()
    assert [picture.candidate for picture in gateway.get(job).pictures] == [7, 1, 5, 6]


@asynchronous
async def test_pictures_tell_their_wording_and_the_job_its_parameters(gateway: GatewayHarness) -> None:
    async with served(gateway) as stub:
        job = await finished_job(stub, gateway, parameters(vary=True, diversity=0.25))
        assert [picture.wording for picture in job.pictures] == [
            wording("a cat", picture.candidate) for picture in job.pictures
        ]
        assert (job.prompt_reading.drawn, job.parameters.prompt) == ("a cat", "a cat")
        assert (job.parameters.vary, job.parameters.diversity) == (True, 0.25)
        plain = await finished_job(stub, gateway)
        assert [picture.wording for picture in plain.pictures] == [""] * 3
        # Filled in, so that a job can be repeated although the defaults have changed.
        assert plain.parameters.HasField("vary")
        assert plain.parameters.HasField("diversity")
        assert plain.parameters.sampling.HasField("layout_share")


@asynchronous
async def test_values_out_of_range_are_refused(gateway: GatewayHarness) -> None:
    async with served(gateway) as stub:
        for value in (-0.1, 1.1, float("nan")):
            with pytest.raises(InvalidInputError, match=r"^parameters\.diversity: must be from 0 to 1"):
                await create_job(stub, parameters(diversity=value))
        for name in ("layout_share", "layout_temperature", "layout_guidance_scale"):

            def wrong(request: Any, name: str = name) -> None:
                setattr(request.parameters.sampling, name, -1)

            with pytest.raises(InvalidInputError, match=rf"^parameters\.sampling\.{name}: "):
                await create_job(stub, wrong)
