"""Calls of the database from the event loop: in a thread, and with a limit of time."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from smalti.errors import DatabaseUnavailableError
from smalti.services.gateway.database.connection import RETRY_SECONDS
from smalti.services.gateway.database.deadlines import within

Result = TypeVar("Result")


async def call_database(
    threads: Executor, seconds: float, function: Callable[..., Result], *arguments: Any, **named: Any
) -> Result:
    """Runs a function of the database in a thread, within the tracing context of this call.

    Raises:
        DatabaseUnavailableError: it has not returned in time; what it has begun may still be stored.
    """
    with within(seconds):
        calling = in_thread(threads, function, *arguments, **named)
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await calling
    except TimeoutError as error:
        if not limit.expired():
            raise
        problem = f"the database does not answer within {seconds:g} s; try again"
        raise DatabaseUnavailableError(problem, RETRY_SECONDS) from error


def in_thread(
    threads: Executor, function: Callable[..., Result], *arguments: Any, **named: Any
) -> asyncio.Future[Result]:
    """Runs a blocking function in a thread, within the context of this call."""
    call = partial(copy_context().run, function, *arguments, **named)
    return asyncio.get_running_loop().run_in_executor(threads, call)
