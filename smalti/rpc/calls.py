"""Handling every call of a server: the limit of calls, the deadline, errors, and the drain."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from contextvars import ContextVar
from typing import Any

import grpc

from smalti.errors import DrainingError, OverloadedError, RequestExpiredError
from smalti.rpc.errors import DETAILS_KEY, status_of
from smalti.rpc.reasons import reason_of

log = logging.getLogger(__name__)

# Health and reflection are exempt: probes need an answer even at the limit of calls, and `Watch` has no deadline.
EXEMPT = "/grpc."

RETRY_SECONDS = 1.0

_deadline: ContextVar[float] = ContextVar("deadline")

Context = grpc.aio.ServicerContext
Handler = grpc.RpcMethodHandler


def deadline() -> float:
    """Returns the deadline of the current call, on the clock of `time.monotonic`.

    Raises:
        LookupError: there is no current call.
    """
    return _deadline.get()


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every call of a `grpc.aio` server whose methods are coroutines or asynchronous generators.

    * While `max_calls` are in progress, and while draining, new calls are refused.
    * A call ends at its deadline, or at the default deadline if it has none, and at the maximum deadline at the latest.
    * An exception becomes a status with details; the cause of an unexpected one is only logged.
    """

    def __init__(
        self,
        *,
        max_calls: int,
        default_deadline: float,
        max_deadline: float,
        endless: Collection[str] = (),
    ) -> None:
        """Starts without calls.

        Args:
            max_calls: maximum number of concurrent calls.
            default_deadline: time in seconds for a call without a deadline.
            max_deadline: maximum time in seconds for any call.
            endless: methods such as "/smalti.v1.ImageService/WatchJob" that the drain interrupts because they would
                not end by themselves; their clients resume them elsewhere.
        """
        self._max_calls = max_calls
        self._default = min(default_deadline, max_deadline)
        self._longest = max_deadline
        self._endless = frozenset(endless)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._draining = False
        self.running = 0
        """Number of calls in progress, except those of health and reflection."""

    def drain(self) -> None:
        """Refuses calls from now on, and interrupts the endless ones."""
        self._draining = True
        for task in self._tasks:
            task.cancel()

    async def intercept_service(  # noqa: D102
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None or method.startswith(EXEMPT):
            return handler
        return wrapped(handler, lambda context: self._call(method, context))

    @asynccontextmanager
    async def _call(self, method: str, context: Any) -> AsyncIterator[None]:
        """Counts a call, applies its deadline, and ends it with a status if it fails."""
        if self._draining:
            await abort(context, DrainingError("the service is shutting down; try again"), method)
        if self.running >= self._max_calls:
            problem = f"{self.running} calls are already in progress; try again in {RETRY_SECONDS:.0f} s"
            await abort(context, OverloadedError(problem, RETRY_SECONDS), method)
        asked = context.time_remaining()
        seconds = min(self._default if asked is None else asked, self._longest)
        token = _deadline.set(time.monotonic() + seconds)
        task = asyncio.current_task()
        cut_off = method in self._endless and task is not None
        if cut_off and task is not None:
            self._tasks.add(task)
        self.running += 1
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                yield
        except grpc.aio.AbortError:
            raise
        except asyncio.CancelledError:
            # The client has cancelled the call, unless the server drains.
            if not (cut_off and self._draining and task is not None and task.cancelling()):
                raise
            task.uncancel()
            await abort(context, DrainingError("the service is shutting down; resume the call"), method)
        except TimeoutError as error:
            if not limit.expired():
                await abort(context, error, method)
            await abort(context, RequestExpiredError(f"the call took longer than {seconds:.3g} s"), method)
        except Exception as error:
            await abort(context, error, method)
        finally:
            self.running -= 1
            if task is not None:
                self._tasks.discard(task)
            _deadline.reset(token)


def wrapped(handler: Any, around: Callable[[Any], AbstractAsyncContextManager[Any]]) -> Handler:
    """Returns a handler whose calls run inside the context manager that `around` makes from the call's context."""
    behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

    async def unary(request: Any, context: Any) -> Any:
        async with around(context):
            return await behaviour(request, context)

    async def stream(request: Any, context: Any) -> None:
        # Writes the responses itself. If it were a generator, a deadline that expires during a write to a slow client
        # would interrupt gRPC's code instead of this.
        async with around(context):
            answers = behaviour(request, context)
            if not hasattr(answers, "__aiter__"):
                await answers
                return
            async with aclosing(answers):
                async for answer in answers:
                    await context.write(answer)

    make: Any = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    made: Handler = make(
        stream if handler.response_streaming else unary,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return made


async def abort(context: Any, error: BaseException, method: str) -> None:
    """Ends a call with the status of an exception; does not return."""
    status = status_of(error, during=method)
    await context.abort(
        reason_of(error).code, status.message, trailing_metadata=((DETAILS_KEY, status.SerializeToString()),)
    )
