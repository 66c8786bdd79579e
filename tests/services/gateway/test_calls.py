"""The other calls of ImageService over gRPC, with a real database; the test acts as the stages."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event

from harness.gateway import GatewayHarness, sqlite_database
from harness.gateway_calls import (
    count_jobs,
    create_job,
    finished_job,
    get_job,
    image_tokens,
    initial_image,
    parameters,
    served,
)
from harness.grpc_server import asynchronous
from harness.service import answer
from smalti.errors import (
    InvalidInputError,
    JobNotFoundError,
    JobNotSucceededError,
    PictureNotFoundError,
    UnavailableError,
)
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.rpc.errors import translated
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.jobs.repository import JobFilter
from smalti.storage import JobKeys
from smalti.testing.words import SMALL_WORLD
from smalti.v1 import image_pb2, job_pb2

ROWS, CODES = 4, 64  # The tiny model has 4 x 4 tokens and 64 codes.


@pytest.fixture
def database(sqlite: Database) -> Database:
    """Calls behave alike on every database."""
    return sqlite


# Getting, listing, cancelling


@asynchronous
async def test_unknown_job_is_not_found(gateway: GatewayHarness) -> None:
    async with served(gateway) as stub:
        for name in ("nobody", "x" * 1000, "a\0b"):
            for method, kind in (
                (stub.GetJob, image_pb2.GetJobRequest),
                (stub.CancelJob, image_pb2.CancelJobRequest),
                (stub.WatchJob, image_pb2.WatchJobRequest),
                (stub.DownloadImages, image_pb2.DownloadImagesRequest),
            ):
                with pytest.raises(JobNotFoundError):
                    await answer(method(kind(job_id=name)))
        with pytest.raises(InvalidInputError, match="job_id: must be set"):
            await answer(stub.GetJob(image_pb2.GetJobRequest()))
        with pytest.raises(InvalidInputError, match="view"):
            await answer(stub.GetJob(image_pb2.GetJobRequest(job_id="a", view=9)))  # type: ignore[arg-type]


@asynchronous
async def test_list_returns_pages(gateway: GatewayHarness) -> None:
    async with served(gateway) as stub:
        jobs: list[str] = []
        for number in range(5):
            jobs.insert(0, (await create_job(stub, labels={"odd": str(number % 2)})).id)
            gateway.clock.advance(1)

        async def pages(**fields: Any) -> list[list[str]]:
            found, token = [], ""
            while True:
                asked = image_pb2.ListJobsRequest(page_size=2, page_token=token, **fields)
                response = await answer(stub.ListJobs(asked))
                found.append([job.id for job in response.jobs])
                token = response.next_page_token
                if not token:
                    return found

        assert await pages() == [jobs[:2], jobs[2:4], jobs[4:]]
        assert await pages(labels={"odd": "0"}) == [[jobs[0], jobs[2]], [jobs[4]]]
        queued = [job_pb2.JOB_STATE_QUEUED]
        assert sum(map(len, await pages(states=queued))) == 5
        created_at = (await get_job(stub, jobs[2])).create_time
        assert await pages(created_since=created_at) == [jobs[:2], [jobs[2]]]
        assert await pages(created_before=created_at) == [jobs[3:]]
        first = await answer(stub.ListJobs(image_pb2.ListJobsRequest(page_size=2)))
        for wrong in (
            {"page_token": first.next_page_token, "labels": {"odd": "0"}},
            {"page_token": first.next_page_token[:-2]},
            {"page_token": "rubbish"},
            {"page_token": "ü"},
        ):
            with pytest.raises(InvalidInputError, match="page_token"):
                await answer(stub.ListJobs(image_pb2.ListJobsRequest(**wrong)))
        with pytest.raises(InvalidInputError, match="page_size"):
            await answer(stub.ListJobs(image_pb2.ListJobsRequest(page_size=-1)))
        states = [job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_UNSPECIFIED]
        with pytest.raises(InvalidInputError, match=r"states\[1\]"):
            await answer(stub.ListJobs(image_pb2.ListJobsRequest(states=states)))


@asynchronous
async def test_list_is_basic_by_default_and_pages_stay_small(gateway: GatewayHarness) -> None:
    async with served(gateway) as stub:
        job = await finished_job(stub, gateway, initial_image(keep_rows=1, tokens=image_tokens(16)))
        assert list(job.parameters.initial_image.tokens.tokens) == [1] * 4
        (basic,) = (await answer(stub.ListJobs(image_pb2.ListJobsRequest()))).jobs
        assert not basic.pictures
        assert not basic.parameters.HasField("initial_image")
        full = image_pb2.ListJobsRequest(view=image_pb2.JOB_VIEW_FULL)
        assert list((await answer(stub.ListJobs(full))).jobs) == [job]
        long = "ü" * 4000
        for _ in range(450):
            await asyncio.to_thread(gateway.create, long)
        page = await answer(stub.ListJobs(image_pb2.ListJobsRequest(page_size=1000)))
        assert page.ByteSize() < 4 * 2**20
        assert page.next_page_token
        asked = image_pb2.ListJobsRequest(page_size=1000, page_token=page.next_page_token)
        rest = await answer(stub.ListJobs(asked))
        assert len(page.jobs) + len(rest.jobs) == 451


@asynchronous
async def test_cancelled_job_stays_cancelled(gateway: GatewayHarness) -> None:
    async with served(gateway) as stub:
        job = await create_job(stub)
        asked = image_pb2.CancelJobRequest(job_id=job.id)
        cancelled = (await answer(stub.CancelJob(asked))).job
        assert cancelled.state == job_pb2.JOB_STATE_CANCELLED
        assert gateway.store.stat(JobKeys(job.id).cancelled) is not None
        assert (await answer(stub.CancelJob(asked))).job == cancelled
        other = await finished_job(stub, gateway)
        kept = (await answer(stub.CancelJob(image_pb2.CancelJobRequest(job_id=other.id)))).job
        assert kept == other


@asynchronous
async def test_watch_of_a_deleted_job_ends(gateway: GatewayHarness) -> None:
    async with served(gateway) as stub:
        job = await create_job(stub)
        watch = stub.WatchJob(image_pb2.WatchJobRequest(job_id=job.id))
        assert (await watch.read()).job == job
        await answer(stub.DeleteJob(image_pb2.DeleteJobRequest(job_id=job.id)))
        states = [job.state]
        # The watch sees the cancelled job, or none.
        with suppress(JobNotFoundError), translated():
            while message := await watch.read():
                states.append(message.job.state)
        assert states[1:] in ([], [job_pb2.JOB_STATE_CANCELLED])
        with pytest.raises(JobNotFoundError):
            await answer(stub.DeleteJob(image_pb2.DeleteJobRequest(job_id=job.id)))


# Downloading


@asynchronous
async def test_download_sends_files_in_pieces(gateway: GatewayHarness) -> None:
    large = np.random.default_rng(0).bytes(2 * 2**20 + 5)
    gateway.stages.picture = lambda seed, index: large if index == 6 else b"small"
    async with served(gateway) as stub:
        job = await finished_job(stub, gateway)
        pieces = await answer(stub.DownloadImages(image_pb2.DownloadImagesRequest(job_id=job.id)))
        assert [piece.picture.candidate for piece in pieces if piece.HasField("picture")] == [7, 6, 5]
        assert [piece.HasField("picture") for piece in pieces] == [True, True, False, False, True]
        assert b"".join(piece.data for piece in pieces[1:4]) == large
        assert max(len(piece.data) for piece in pieces) <= 2**20
        assert pieces[1].picture == job.pictures[1]
        asked = image_pb2.DownloadImagesRequest(job_id=job.id, candidates=[5, 7])
        some = await answer(stub.DownloadImages(asked))
        assert [piece.picture.candidate for piece in some] == [7, 5]


@asynchronous
async def test_download_names_the_missing_picture(gateway: GatewayHarness) -> None:
    async with served(gateway) as stub:

        async def download(job_id: str, *candidates: int) -> None:
            asked = image_pb2.DownloadImagesRequest(job_id=job_id, candidates=candidates)
            await answer(stub.DownloadImages(asked))

        waiting = await create_job(stub)
        with pytest.raises(JobNotSucceededError, match="is queued"):
            await download(waiting.id)
        job = await finished_job(stub, gateway)
        with pytest.raises(PictureNotFoundError, match="candidate 2"):
            await download(job.id, 7, 2)
        gateway.store.delete(job.pictures[1].object_key)
        with pytest.raises(PictureNotFoundError, match="has been deleted"):
            await download(job.id)
        gateway.store.put(job.pictures[0].object_key, b"another picture")
        with pytest.raises(PictureNotFoundError, match="is damaged"):
            await download(job.id)


# Models


@asynchronous
async def test_models_have_limits_and_a_vocabulary(
    gateway: GatewayHarness, worded: ModelFolder, tmp_path: Path
) -> None:
    async with served(gateway) as stub:
        (model,) = (await answer(stub.ListModels(image_pb2.ListModelsRequest()))).models
        assert (model.default, model.rows, model.columns, model.codebook_size) == (True, ROWS, ROWS, CODES)
        assert model.limits.candidates == 256
        assert model.limits.default_time_limit.seconds == 3600
        assert not model.encodes_images  # No decoder is set.
        whole = (await answer(stub.GetModel(image_pb2.GetModelRequest()))).model
        assert not whole.vocabulary.closed
        assert not whole.vocabulary.groups
        with pytest.raises(InvalidInputError, match="page_token"):
            await answer(stub.ListModels(image_pb2.ListModelsRequest(page_token="x")))
    (tmp_path / "worded").mkdir()
    other = GatewayHarness(sqlite_database(tmp_path / "worded"), ModelSpec.load(worded))
    async with served(other) as stub:
        vocabulary = (await answer(stub.GetModel(image_pb2.GetModelRequest()))).model.vocabulary
        assert vocabulary.closed
        groups = {group.name: list(group.words) for group in vocabulary.groups}
        assert groups["things"] == sorted(SMALL_WORLD.things)
        (listed,) = (await answer(stub.ListModels(image_pb2.ListModelsRequest()))).models
        assert not listed.HasField("vocabulary")
    other.close()
    other.gateway.context.database.close()


# Faults of the database


@asynchronous
async def test_busy_database_makes_calls_unavailable_and_stores_nothing(
    gateway: GatewayHarness, caplog: pytest.LogCaptureFixture
) -> None:
    import sqlite3

    file = gateway.gateway.context.database.engine.url.database
    assert file is not None
    async with served(gateway) as stub:
        job = await create_job(stub)
        holder = sqlite3.connect(file, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match="the database is not available") as unavailable:
            await create_job(stub)
        assert unavailable.value.retry_after
        assert "locked" in caplog.text
        assert (await get_job(stub, job.id)).id == job.id  # Reads still work.
        holder.execute("ROLLBACK")
        holder.close()
        assert count_jobs(gateway) == 1
        await create_job(stub)
        assert count_jobs(gateway) == 2


@asynchronous
async def test_full_disk_makes_calls_unavailable_and_stores_nothing(
    gateway: GatewayHarness, caplog: pytest.LogCaptureFixture
) -> None:
    database = gateway.gateway.context.database
    async with served(gateway) as stub:
        await create_job(stub)

        def limit(pages: int) -> Callable[..., None]:
            return lambda connection, *_: connection.execute(f"PRAGMA max_page_count={pages}")

        full = limit(1)  # SQLite raises it to the current number of pages, so no page can be added.
        event.listen(database.engine, "checkout", full)
        refused = 0
        for _ in range(200):
            try:
                await create_job(stub, parameters(candidates=256))
            except UnavailableError:
                refused += "full" in caplog.text
                break
        assert refused == 1
        before = count_jobs(gateway)
        event.remove(database.engine, "checkout", full)
        event.listen(database.engine, "checkout", limit(2**30))
        await create_job(stub)
        assert count_jobs(gateway) == before + 1
        gateway.run_jobs()
        assert gateway.jobs.page(JobFilter(), after=None, limit=1)[0].job.state == "succeeded"
