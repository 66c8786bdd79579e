"""WatchJob, previews, and initial images over gRPC; the test acts as the stages."""

import asyncio
import io
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from harness.gateway import GatewayHarness, MakeGateway, job_spec
from harness.gateway_calls import count_jobs, create_job, finished_job, image_tokens, initial_image, served
from harness.grpc_server import asynchronous
from harness.service import answer, called
from smalti.errors import (
    InvalidInputError,
    JobNotSucceededError,
    NotSupportedError,
    PictureNotFoundError,
)
from smalti.pictures import plain_png_bytes
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.services.gateway.api.conversion import job_message
from smalti.services.gateway.api.watch import WatchHandler
from smalti.services.gateway.jobs.repository import JobSnapshot
from smalti.v1 import image_pb2, job_pb2

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


# WatchJob


@asynchronous
async def test_watch_sends_every_version_until_the_end(gateway: GatewayHarness) -> None:
    async with served(gateway) as stub:
        job = await create_job(stub)
        watch = stub.WatchJob(image_pb2.WatchJobRequest(job_id=job.id))
        first = (await watch.read()).job
        assert (first.state, first.jobs_ahead) == (job_pb2.JOB_STATE_QUEUED, 0)
        assert first.HasField("jobs_ahead")
        (task,) = await asyncio.to_thread(gateway.send)
        events = list(gateway.stages.run(task))
        gateway.handle(events[0])
        running = (await watch.read()).job
        assert (running.state, running.progress.prompt_encoded) == (job_pb2.JOB_STATE_RUNNING, True)
        await asyncio.to_thread(gateway.handle, *events[1:])
        versions = [first.version, running.version]
        while message := await watch.read():
            versions.append(message.job.version)
            last = message.job
        assert versions == sorted(set(versions))
        assert last.state == job_pb2.JOB_STATE_SUCCEEDED
        assert len(last.pictures) == 3
        assert await watch.code() is grpc.StatusCode.OK


@asynchronous
async def test_watch_resumes_after_a_version(gateway: GatewayHarness) -> None:
    async with served(gateway) as stub:
        job = await create_job(stub)
        asked = image_pb2.WatchJobRequest(job_id=job.id, since_version=job.version)
        watch = stub.WatchJob(asked)
        nothing = asyncio.create_task(watch.read())
        (task,) = await asyncio.to_thread(gateway.send)
        assert not nothing.done()
        await asyncio.to_thread(gateway.handle, gateway.stages.encode(task)[1])
        assert (await nothing).job.version == job.version + 1
        watch.cancel()
        await asyncio.to_thread(gateway.cancel, job.id)
        late = image_pb2.WatchJobRequest(job_id=job.id, since_version=1000)
        (final,) = await answer(stub.WatchJob(late))
        assert final.job.state == job_pb2.JOB_STATE_CANCELLED


@asynchronous
async def test_watch_sends_keepalives(gateway: GatewayHarness) -> None:
    async with served(gateway, keepalive_seconds=0.05) as stub:
        job = await create_job(stub)
        watch = stub.WatchJob(image_pb2.WatchJobRequest(job_id=job.id))
        kinds = [(await watch.read()).WhichOneof("event") for _ in range(3)]
        assert kinds == ["job", None, None]
        watch.cancel()


@asynchronous
async def test_watch_shows_changes_made_by_another_gateway(make_gateway: MakeGateway) -> None:
    gateway, other = make_gateway(), make_gateway()
    looking = asyncio.create_task(gateway.gateway.watchers.poll(gateway.jobs.versions, 0.05))
    async with served(gateway) as stub:
        job = await create_job(stub)
        watch = stub.WatchJob(image_pb2.WatchJobRequest(job_id=job.id))
        await watch.read()
        await asyncio.to_thread(other.cancel, job.id)
        assert (await watch.read()).job.state == job_pb2.JOB_STATE_CANCELLED
    looking.cancel()


@asynchronous
async def test_watchers_share_a_read_until_the_next_change(gateway: GatewayHarness) -> None:
    versions: list[int] = []
    go_on = asyncio.Event()

    async def read(job_id: str) -> tuple[JobSnapshot, job_pb2.Job]:
        snapshot = gateway.jobs.get(job_id)
        versions.append(snapshot.job.version)
        await go_on.wait()
        return snapshot, job_message(snapshot, lambda key: None, full=True)

    async def rest(watch: AsyncGenerator[image_pb2.WatchJobResponse, None]) -> list[int]:
        return [message.job.version async for message in watch]

    hub = gateway.gateway.watchers
    handler = WatchHandler(hub, read, previews=None, preview_seconds=1.0)

    def begin() -> tuple[AsyncGenerator[image_pb2.WatchJobResponse, None], Any]:
        watch = handler.watch(job.id, since=-1, rows=False, previews=False)
        return watch, asyncio.ensure_future(anext(watch))

    job = job_message(gateway.jobs.create(job_spec()), lambda key: None, full=True)
    early = [begin() for _ in range(5)]
    while not versions:
        await asyncio.sleep(0)
    await asyncio.to_thread(gateway.cancel, job.id)
    late, latest = begin()
    while len(versions) < 2:
        await asyncio.sleep(0)
    assert versions == [1, 2]
    go_on.set()
    assert [(await first).job.version for _, first in early] == [1] * 5
    assert (await latest).job.version == 2
    assert await asyncio.gather(*(rest(watch) for watch, _ in (*early, (late, latest)))) == [[2]] * 5 + [[]]
    assert versions == [1, 2, 2]


@asynchronous
async def test_watch_sends_rows_on_request(gateway: GatewayHarness) -> None:
    async with served(gateway) as stub:
        job = await create_job(stub)
        (task,) = await asyncio.to_thread(gateway.send)
        generates, encoded = gateway.stages.encode(task)
        gateway.handle(encoded, gateway.stages.draw_rows(generates[0], 1))  # Before the watch begins.
        asked = image_pb2.WatchJobRequest(job_id=job.id, include_rows=True)
        watch = stub.WatchJob(asked)
        first = await watch.read()
        assert [(run.candidate, run.start, list(run.tokens)) for run in first.rows.runs] == [
            (candidate, 0, [candidate] * 4) for candidate in range(4)
        ]
        await watch.read()
        gateway.handle(gateway.stages.draw_rows(generates[0], 2), gateway.stages.draw_rows(generates[0], 4))
        runs: list[tuple[int, int]] = []
        while len(runs) < 8:
            runs += [(run.candidate, run.start) for run in (await watch.read()).rows.runs]
        assert sorted(runs) == sorted((candidate, start) for candidate in range(4) for start in (4, 12))
        await asyncio.to_thread(gateway.cancel, job.id)
        assert (await watch.read()).job.state == job_pb2.JOB_STATE_CANCELLED


# Initial images and previews


@asynchronous
async def test_initial_image_of_an_earlier_job(gateway: GatewayHarness) -> None:
    async with served(gateway) as stub:
        earlier = await finished_job(stub, gateway)
        reference = {"job_id": earlier.id, "candidate": 6}
        job = await create_job(stub, initial_image(keep_rows=2, picture=reference))
        assert job.parameters.initial_image == job_pb2.InitialImage(keep_rows=2, tokens=image_tokens(8, 6))
        (task,) = await asyncio.to_thread(gateway.send)
        assert task.given == (6,) * 8
        before = count_jobs(gateway)
        for wrong, error in (
            ({"job_id": earlier.id, "candidate": 0}, PictureNotFoundError),  # It is not among the pictures.
            ({"job_id": "nobody", "candidate": 0}, PictureNotFoundError),
            ({"job_id": job.id, "candidate": 0}, JobNotSucceededError),
        ):
            with pytest.raises(error):
                await create_job(stub, initial_image(keep_rows=2, picture=wrong))
        with pytest.raises(NotSupportedError):
            await create_job(stub, initial_image(keep_rows=2, image=b"a file"))
        assert count_jobs(gateway) == before


@asynccontextmanager
async def decoding(spec: ModelSpec) -> AsyncIterator[Any]:
    """Serves the decoder of the tiny model; yields a stub for it."""
    from smalti.engines.decoder import DecoderEngine
    from smalti.service.compute import ComputeThread
    from smalti.service.model import model_message
    from smalti.services.decoder.servicer import DecoderServicer
    from smalti.v1.decoder_pb2_grpc import DecoderServiceStub, add_DecoderServiceServicer_to_server

    compute = ComputeThread(max_permits=8, stall_seconds=60, check=lambda: None)
    servicer = DecoderServicer(
        engine=DecoderEngine.load(spec), compute=compute, spec=spec, model=model_message(spec).reference
    )
    async with called(lambda server: add_DecoderServiceServicer_to_server(servicer, server)) as channel:
        yield DecoderServiceStub(channel)
    compute.close()


@asynchronous
async def test_initial_image_from_a_file(make_gateway: MakeGateway, tiny: ModelFolder) -> None:
    gateway = make_gateway(decoder="unused:1")
    async with decoding(ModelSpec.load(tiny)) as decoder, served(gateway, decoder=decoder) as stub:
        assert (await answer(stub.GetModel(image_pb2.GetModelRequest()))).model.encodes_images
        image = plain_png_bytes(Image.new("RGB", (40, 30), "red"))
        job = await create_job(stub, initial_image(keep_rows=2, image=image))
        assert len(job.parameters.initial_image.tokens.tokens) == 8
        for wrong in (b"", b"no picture", bytes(9 * 2**20)):
            with pytest.raises(InvalidInputError) as invalid:
                await create_job(stub, initial_image(keep_rows=2, image=wrong))
            assert invalid.value.field == "parameters.initial_image.image"
        assert count_jobs(gateway) == 1


@asynchronous
async def test_previews_show_the_rows_drawn_so_far(make_gateway: MakeGateway, tiny: ModelFolder) -> None:
    gateway = make_gateway(previews=0.05)
    async with decoding(ModelSpec.load(tiny)) as decoder, served(gateway, decoder=decoder) as stub:
        job = await create_job(stub)
        (task,) = await asyncio.to_thread(gateway.send)
        generates, encoded = gateway.stages.encode(task)
        rows = [gateway.stages.draw_rows(generates[0], number) for number in (1, 2)]
        gateway.handle(encoded, *rows)
        watch = stub.WatchJob(image_pb2.WatchJobRequest(job_id=job.id, include_previews=True))
        seen: dict[int, image_pb2.Preview] = {}
        while len(seen) < 4:
            message = await watch.read()
            if message.HasField("preview"):
                seen[message.preview.candidate] = message.preview
        assert {preview.rows_drawn for preview in seen.values()} == {2}
        pixels = np.asarray(Image.open(io.BytesIO(seen[0].image.data)))
        assert pixels.shape == (32, 32, 3)
        assert (pixels[16:] == 128).all()
        assert not (pixels[:16] == 128).all()
        watch.cancel()
