"""Calls of a gateway for tests, over gRPC."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from harness.gateway import GatewayHarness
from harness.service import answer, called
from smalti.services.gateway.api.servicer import ImageServicer
from smalti.services.gateway.jobs.repository import Conditions
from smalti.v1 import image_pb2, job_pb2
from smalti.v1.image_pb2_grpc import ImageServiceStub, add_ImageServiceServicer_to_server
from smalti.v1.tokens_pb2 import ImageTokens

Change = Callable[[Any], object]
"""Changes a request before it is made."""


@asynccontextmanager
async def served(gateway: GatewayHarness, **options: Any) -> AsyncIterator[Any]:
    """Serves a gateway; gives what calls it."""
    servicer = ImageServicer(gateway.gateway, **options)
    async with called(lambda server: add_ImageServiceServicer_to_server(servicer, server)) as channel:
        yield ImageServiceStub(channel)


def request(change: Change = lambda asked: None, **fields: Any) -> image_pb2.CreateImagesRequest:
    """Returns a request for 8 candidates of a cat, of which the best 3 are wanted."""
    asked = image_pb2.CreateImagesRequest(**fields)
    asked.parameters.MergeFrom(job_pb2.ImageParameters(prompt="a cat", n=3, candidates=8, seed=7))
    change(asked)
    return asked


async def created(stub: Any, *changes: Any, **fields: Any) -> job_pb2.Job:
    """Creates a job."""
    return (await answer(stub.CreateImages(request(*changes, **fields)))).job


async def fetched(stub: Any, job_id: str, **fields: Any) -> job_pb2.Job:
    """Gets a job."""
    return (await answer(stub.GetJob(image_pb2.GetJobRequest(job_id=job_id, **fields)))).job


async def done(stub: Any, gateway: GatewayHarness, *changes: Any, **fields: Any) -> job_pb2.Job:
    """Returns a job that has succeeded."""
    job = await created(stub, *changes, **fields)
    await asyncio.to_thread(gateway.work)
    return await fetched(stub, job.id)


def stored(gateway: GatewayHarness) -> int:
    """Returns how many jobs are stored."""
    return len(gateway.jobs.page(Conditions(), behind=None, limit=1000))


def parameters(**fields: Any) -> Change:
    """Changes parameters."""
    return lambda asked: asked.parameters.MergeFrom(job_pb2.ImageParameters(**fields))


def initial(**fields: Any) -> Change:
    """Changes the initial image."""
    return parameters(initial_image=job_pb2.InitialImage(**fields))


def tokens(count: int, token: int = 1) -> Any:
    """Returns so many tokens."""
    return ImageTokens(tokens=[token] * count)
