"""Creating jobs over gRPC, with a real database; the test acts as the stages."""

import asyncio
import uuid

import pytest

from harness.gateway import GatewayHarness, MakeGateway
from harness.gateway_calls import (
    Change,
    count_jobs,
    create_job,
    finished_job,
    get_job,
    image_tokens,
    initial_image,
    mask_file,
    parameters,
    served,
)
from harness.grpc_server import asynchronous
from harness.service import answer
from smalti.errors import (
    InvalidInputError,
    ModelNotFoundError,
    OverloadedError,
    RequestIdReusedError,
)
from smalti.registry.folder import ModelFolder
from smalti.services.gateway.database.connection import Database
from smalti.storage import JobKeys, content_key
from smalti.testing.stages import picture_bytes
from smalti.v1 import image_pb2, job_pb2
from smalti.v1.model_pb2 import ModelReference

CODES = 64  # The number of codes of the tiny model.


@pytest.fixture
def database(sqlite: Database) -> Database:
    """Calls behave alike on every database."""
    return sqlite


@asynchronous
async def test_job_has_all_parameters_that_are_needed_to_repeat_it(
    gateway: GatewayHarness, tiny: ModelFolder
) -> None:
    async with served(gateway) as stub:

        def change(asked: image_pb2.CreateImagesRequest) -> None:
            asked.parameters.prompt = "  a cat "
            asked.parameters.sampling.temperature = 0
            for name in ("n", "candidates", "seed"):
                asked.parameters.ClearField(name)

        first = await finished_job(stub, gateway, change, labels={"user": "me"})
        asked = first.parameters
        assert (asked.model.name, asked.model.revision) == (tiny.name, tiny.revision)
        assert (asked.prompt, asked.n, asked.candidates, asked.first_candidate) == ("a cat", 9, 32, 0)
        assert asked.HasField("seed")
        assert asked.sampling.temperature == 0
        assert asked.sampling.guidance_scale == tiny.sampling.guidance_scale
        assert dict(first.labels) == {"user": "me"}
        again = await finished_job(stub, gateway, lambda new: new.parameters.CopyFrom(asked))
        assert again.parameters == asked
        assert [picture.sha256 for picture in again.pictures] == [
            picture.sha256 for picture in first.pictures
        ]


@asynchronous
async def test_succeeded_job_has_its_pictures(gateway: GatewayHarness) -> None:
    async with served(gateway) as stub:
        job = await finished_job(stub, gateway)
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED
        assert [(picture.candidate, picture.rank, picture.score) for picture in job.pictures] == [
            (7, 0, 0.007),
            (6, 1, 0.006),
            (5, 2, 0.005),
        ]
        best = job.pictures[0]
        assert best.size_bytes == len(picture_bytes(7, 7))
        assert best.object_key == content_key(JobKeys(job.id).candidate(7), best.sha256)
        assert (best.media_type, best.url) == ("image/png", "")  # A store in memory has no URLs.
        assert not best.HasField("url_expire_time")
        assert job.prompt_reading.drawn == "a cat"
        assert job.progress == job_pb2.JobProgress(
            prompt_encoded=True,
            candidates=8,
            rows=32,
            rows_drawn=32,
            candidates_drawn=8,
            candidates_decoded=8,
            candidates_ranked=8,
        )
        assert job.create_time.ToMicroseconds() <= job.start_time.ToMicroseconds()
        assert job.delete_time.ToMicroseconds() - job.end_time.ToMicroseconds() == 86_400_000_000
        assert not job.HasField("jobs_ahead")
        basic = await get_job(stub, job.id, view=image_pb2.JOB_VIEW_BASIC)
        assert not basic.pictures
        del job.pictures[:]
        assert basic == job


@asynchronous
async def test_request_id_makes_a_call_repeatable(gateway: GatewayHarness) -> None:
    async with served(gateway) as stub:
        request_id = str(uuid.uuid4())
        first = await create_job(stub, request_id=request_id, labels={"a": "1", "b": "2"})
        assert first.request_id == request_id
        capitals = await create_job(stub, request_id=request_id.upper(), labels={"a": "1", "b": "2"})
        assert capitals.id == first.id
        await asyncio.to_thread(gateway.run_jobs)
        again = await create_job(stub, request_id=request_id, labels={"b": "2", "a": "1"})
        assert (again.id, again.state) == (first.id, job_pb2.JOB_STATE_SUCCEEDED)
        with pytest.raises(RequestIdReusedError) as reused:
            await create_job(stub, request_id=request_id)
        assert reused.value.name == first.id
        assert count_jobs(gateway) == 1


@asynchronous
async def test_repeated_request_is_answered_while_too_many_jobs_are_open(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(open_jobs=1)
    async with served(gateway) as stub:
        request_id = str(uuid.uuid4())
        first = await create_job(stub, request_id=request_id)
        with pytest.raises(OverloadedError) as overloaded:
            await create_job(stub)
        assert overloaded.value.retry_after > 0
        assert (await create_job(stub, request_id=request_id)).id == first.id
        assert count_jobs(gateway) == 1


def seconds(field: str, value: float) -> Change:
    return lambda asked: getattr(asked, field).FromNanoseconds(round(value * 1e9))


BAD: dict[str, list[Change]] = {
    "request_id": [lambda asked: setattr(asked, "request_id", "mine")],
    "parameters.prompt": [
        lambda asked: setattr(asked.parameters, "prompt", " \n"),
        lambda asked: setattr(asked.parameters, "prompt", "x" * 10_000),
        lambda asked: setattr(asked.parameters, "prompt", "a\0b"),
    ],
    "parameters.n": [parameters(n=9), parameters(n=0), parameters(n=-1)],
    "parameters.candidates": [parameters(candidates=257), parameters(candidates=0)],
    "parameters.first_candidate": [parameters(first_candidate=2**20), parameters(first_candidate=-1)],
    "parameters.seed": [parameters(seed=-1)],
    "parameters.sampling.top_p": [parameters(sampling={"top_p": 0}), parameters(sampling={"top_p": 1.5})],
    "parameters.sampling.temperature": [parameters(sampling={"temperature": float("nan")})],
    "parameters.initial_image.source": [initial_image(keep_rows=1)],
    "parameters.initial_image.keep_rows": [
        initial_image(keep_rows=0, tokens=image_tokens(16)),
        initial_image(keep_rows=4, tokens=image_tokens(16)),
        initial_image(keep_rows=-1, tokens=image_tokens(16)),
    ],
    "parameters.initial_image.strength": [
        initial_image(strength=0, tokens=image_tokens(16)),
        initial_image(strength=1, tokens=image_tokens(16)),
        initial_image(strength=float("nan"), tokens=image_tokens(16)),
        initial_image(keep_rows=1, strength=0.5, tokens=image_tokens(16)),
    ],
    "parameters.initial_image.redrawn_tiles": [
        initial_image(redrawn_tiles=range(16), tokens=image_tokens(16)),
        initial_image(redrawn_tiles=[1], mask=b"a", tokens=image_tokens(16)),
    ],
    "parameters.initial_image.redrawn_tiles[1]": [
        initial_image(redrawn_tiles=[1, 16], tokens=image_tokens(16)),
        initial_image(redrawn_tiles=[2, 1], tokens=image_tokens(16)),
    ],
    "parameters.initial_image.mask": [
        initial_image(mask=b"no picture", tokens=image_tokens(16)),
        initial_image(mask=bytes(9 * 2**20), tokens=image_tokens(16)),
        initial_image(mask=mask_file(31), tokens=image_tokens(16)),
        initial_image(mask=mask_file(32, (0, 0, 0, 0)), tokens=image_tokens(16)),
        initial_image(mask=mask_file(32, (0, 0, 32, 32)), tokens=image_tokens(16)),
    ],
    "parameters.initial_image.tokens.tokens": [
        initial_image(keep_rows=1, tokens=image_tokens(5)),
        initial_image(strength=0.5, tokens=image_tokens(4)),
    ],
    "parameters.initial_image.tokens.tokens[0]": [initial_image(keep_rows=1, tokens=image_tokens(4, CODES))],
    "priority": [lambda asked: setattr(asked, "priority", 7)],
    "time_limit": [seconds("time_limit", 0.5), seconds("time_limit", 86_401), seconds("time_limit", -1)],
    "retention": [seconds("retention", 59), seconds("retention", 7 * 86_400 + 1)],
    "labels": [
        lambda asked: asked.labels.update({str(number): "" for number in range(17)}),
        lambda asked: asked.labels.update({"Upper": ""}),
        lambda asked: asked.labels.update({"": ""}),
    ],
    "labels.key": [lambda asked: asked.labels.update({"key": "x" * 257})],
}


@asynchronous
async def test_invalid_request_names_its_field_and_stores_nothing(gateway: GatewayHarness) -> None:
    async with served(gateway) as stub:
        for field, changes in BAD.items():
            for change in changes:
                with pytest.raises(InvalidInputError) as invalid:
                    await create_job(stub, change)
                assert invalid.value.field == field
    assert count_jobs(gateway) == 0
    assert gateway.send() == []
    assert gateway.objects() == []


@asynchronous
async def test_other_models_are_not_found(gateway: GatewayHarness) -> None:
    async with served(gateway) as stub:
        for other in (
            ModelReference(name="other"),
            ModelReference(name="tiny", revision="sha256:" + "0" * 64),
        ):
            with pytest.raises(ModelNotFoundError):
                await create_job(stub, parameters(model=other))
            with pytest.raises(ModelNotFoundError):
                await answer(stub.GetModel(image_pb2.GetModelRequest(model=other)))
    assert count_jobs(gateway) == 0
