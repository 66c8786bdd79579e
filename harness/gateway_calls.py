"""Calls of a gateway over gRPC, for tests."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from PIL import Image

from harness.gateway import GatewayHarness
from harness.service import answer, called
from smalti.pictures import plain_png_bytes
from smalti.services.gateway.api.batches import BatchServicer
from smalti.services.gateway.api.file_servicer import FileServicer
from smalti.services.gateway.api.servicer import ImageServicer
from smalti.services.gateway.jobs.repository import JobFilter
from smalti.v1 import image_pb2, job_pb2
from smalti.v1.batch_pb2_grpc import add_BatchServiceServicer_to_server
from smalti.v1.file_pb2_grpc import add_FileServiceServicer_to_server
from smalti.v1.image_pb2_grpc import ImageServiceStub, add_ImageServiceServicer_to_server
from smalti.v1.tokens_pb2 import ImageTokens

Change = Callable[[Any], object]
"""Changes a request before it is sent."""


@asynccontextmanager
async def served(gateway: GatewayHarness, **options: Any) -> AsyncIterator[Any]:
    """Serves a gateway; yields a stub for its images, or what `stub` makes of a channel."""
    authenticate = options.pop("authenticate", None) or gateway.gatekeeper()
    stub = options.pop("stub", ImageServiceStub)
    servicer = ImageServicer(gateway.gateway, **options)

    def register(server: Any) -> None:
        add_ImageServiceServicer_to_server(servicer, server)
        add_FileServiceServicer_to_server(FileServicer(gateway.gateway), server)
        add_BatchServiceServicer_to_server(BatchServicer(gateway.gateway), server)

    async with called(register, authenticate) as channel:
        yield stub(channel)


def create_request(change: Change = lambda request: None, **fields: Any) -> image_pb2.CreateImagesRequest:
    """Returns a request for 3 pictures of 8 candidates."""
    request = image_pb2.CreateImagesRequest(**fields)
    request.parameters.MergeFrom(job_pb2.ImageParameters(prompt="a cat", n=3, candidates=8, seed=7))
    change(request)
    return request


async def create_job(stub: Any, *changes: Any, **fields: Any) -> job_pb2.Job:
    """Creates a job."""
    return (await answer(stub.CreateImages(create_request(*changes, **fields)))).job


async def get_job(stub: Any, job_id: str, **fields: Any) -> job_pb2.Job:
    """Gets a job."""
    return (await answer(stub.GetJob(image_pb2.GetJobRequest(job_id=job_id, **fields)))).job


async def finished_job(stub: Any, gateway: GatewayHarness, *changes: Any, **fields: Any) -> job_pb2.Job:
    """Creates a job, runs it, and returns it after it has succeeded."""
    job = await create_job(stub, *changes, **fields)
    await asyncio.to_thread(gateway.run_jobs)
    return await get_job(stub, job.id)


def count_jobs(gateway: GatewayHarness) -> int:
    """Returns the number of jobs in the database."""
    return len(gateway.jobs.page(JobFilter(), after=None, limit=1000))


def parameters(**fields: Any) -> Change:
    """Returns a change of the parameters."""
    return lambda request: request.parameters.MergeFrom(job_pb2.ImageParameters(**fields))


def initial_image(**fields: Any) -> Change:
    """Returns a change of the initial image."""
    return parameters(initial_image=job_pb2.InitialImage(**fields))


def image_tokens(count: int, token: int = 1) -> Any:
    """Returns the same token repeated `count` times."""
    return ImageTokens(tokens=[token] * count)


def mask_file(size: int, hole: tuple[int, int, int, int] = (0, 0, 8, 8)) -> bytes:
    """Returns the file of a square mask with a transparent rectangle (left, top, right, bottom)."""
    image = Image.new("RGBA", (size, size), "black")
    image.paste((0, 0, 0, 0), hole)
    return plain_png_bytes(image)
