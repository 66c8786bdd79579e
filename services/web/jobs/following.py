"""Waiting for a job while its client may go away."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.requests import Request

from smalti.client import AsyncClient, check_succeeded, has_ended
from smalti.errors import RequestCancelledError
from smalti.v1.job_pb2 import Job

Item = TypeVar("Item")
Result = TypeVar("Result")


class ClientGoneError(RequestCancelledError):
    """The client has closed the connection."""


async def wait_for(client: AsyncClient, job: Job) -> Job:
    """Waits until a job has ended, and returns it.

    Raises:
        SmaltiError: the job did not succeed, or the gateway does not answer.
    """
    if not has_ended(job):
        async with aclosing(client.watch(job.id, since_version=job.version)) as versions:
            async for version in versions:
                job = version
    check_succeeded(job)
    return job


async def while_connected(
    request: Request, work: Awaitable[Result], interrupted: Callable[[], Awaitable[BaseException]]
) -> Result:
    """Returns the result of work, unless the client goes away first.

    Args:
        request: the request, whose body has been read.
        work: what the client waits for.
        interrupted: returns an error once the work must stop although the client is there.

    Raises:
        ClientGoneError: the client has gone.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.create_task(_disconnected(request))
    stop = asyncio.ensure_future(interrupted())
    tasks: set[asyncio.Future[Any]] = {working, gone, stop}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if stop.done():
            raise stop.result()
        raise ClientGoneError("the client has closed the connection")
    finally:
        for task in tasks:
            await _cancel(task)


async def until(
    events: AsyncGenerator[Item, None], interrupted: Callable[[], Awaitable[BaseException]]
) -> AsyncGenerator[Item, None]:
    """Yields events until they must stop, and closes their generator.

    Args:
        events: the events.
        interrupted: returns an error once the events must stop, and the error is raised.
    """
    stop = asyncio.ensure_future(interrupted())
    try:
        async with aclosing(events):
            while True:
                event = asyncio.ensure_future(anext(events))
                try:
                    await asyncio.wait({event, stop}, return_when=asyncio.FIRST_COMPLETED)
                    if not event.done():
                        raise stop.result()
                    yield event.result()
                except StopAsyncIteration:
                    return
                finally:
                    await _cancel(event)
    finally:
        await _cancel(stop)


async def _cancel(task: "asyncio.Future[Any]") -> None:
    """Cancels a task, and waits until it has ended."""
    task.cancel()
    with suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
        await task


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
