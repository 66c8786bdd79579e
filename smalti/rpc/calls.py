"""Handling every call of a server: its place, its deadline, errors, and the drain."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, aclosing, asynccontextmanager
from contextvars import ContextVar
from typing import Any

import grpc

from smalti.errors import DrainingError, InvalidInputError, OverloadedError, RequestExpiredError
from smalti.rpc.errors import DETAILS_KEY, status_of
from smalti.rpc.identity import Authenticate
from smalti.rpc.places import CallKinds, Places
from smalti.rpc.reasons import reason_of
from smalti.rpc.requests import read_request

log = logging.getLogger(__name__)

# Health and reflection are exempt: probes need an answer even at the limit of calls, and `Watch` has no deadline.
EXEMPT = "/grpc."

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

    * A call without a place, and every call while draining, is refused before its request is received.
    * A call of somebody who may not make it is refused then, too.
    * A call ends at its deadline, or at the default deadline if it has none, and at the maximum deadline at the latest.
    * An exception becomes a status with details; the cause of an unexpected one is only logged.
    """

    def __init__(
        self,
        *,
        places: Places,
        default_deadline: float,
        max_deadline: float,
        kinds: CallKinds,
        authenticate: Authenticate | None = None,
    ) -> None:
        """Starts without calls.

        Args:
            places: counts the calls.
            default_deadline: time in seconds for a call without a deadline.
            max_deadline: maximum time in seconds for any call.
            kinds: which methods the drain interrupts; their clients resume them elsewhere.
            authenticate: finds out who makes a call; None if everybody may.
        """
        self._places = places
        self._default = min(default_deadline, max_deadline)
        self._longest = max_deadline
        self._authenticate = authenticate
        self._endless = frozenset(kinds.endless)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._draining = False

    @property
    def running(self) -> int:
        """Number of calls in progress, except those of health and reflection."""
        return self._places.running

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
        metadata = {
            key: value
            for key, value in handler_call_details.invocation_metadata or ()
            if isinstance(value, str)
        }
        # gRPC receives the request of a method with one before it calls the method, and this decides about calls first.
        return wrapped(
            handler,
            lambda received, context: self._call(method, metadata, handler, received, context),
            late=not handler.request_streaming,
        )

    @asynccontextmanager
    async def _call(
        self, method: str, metadata: Mapping[str, str], handler: Any, received: Any, context: Any
    ) -> AsyncIterator[Any]:
        """Counts a call, receives its request, applies its deadline, and ends it with a status if it fails.

        Args:
            method: the method.
            metadata: the metadata of the call.
            handler: of the method.
            received: the stream of requests; of a method with one request, the stream of its bytes.
            context: the call.
        """
        if self._draining:
            await abort(context, DrainingError("the service is shutting down; try again"), method)
        peer = self._places.peer(context.peer(), metadata)
        stack = ExitStack()
        try:
            stack.enter_context(self._places.call(method, peer))
        except OverloadedError as error:
            await abort(context, error, method)
        asked = context.time_remaining()
        seconds = min(self._default if asked is None else asked, self._longest)
        token = _deadline.set(time.monotonic() + seconds)
        task = asyncio.current_task()
        cut_off = method in self._endless and task is not None
        if cut_off and task is not None:
            self._tasks.add(task)
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                if self._authenticate is not None:
                    await self._authenticate(method, metadata, context)
                request = received
                if not handler.request_streaming:
                    async with self._places.receive(peer):
                        content = await _only(received)
                    stack.enter_context(self._places.request(method, peer, len(content)))
                    request = read_request(handler.request_deserializer, content)
                yield request
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
            stack.close()
            if task is not None:
                self._tasks.discard(task)
            _deadline.reset(token)


def wrapped(
    handler: Any, around: Callable[[Any, Any], AbstractAsyncContextManager[Any]], *, late: bool = False
) -> Handler:
    """Returns a handler whose calls run inside context managers.

    Args:
        handler: the handler of a method.
        around: returns the context manager around a call, from the request or the stream of requests, and the call's
            context. It gives the method its request or requests.
        late: whether to turn a method with one request into one with a stream of requests, so that `around` receives
            it, as bytes. Clients see no difference.
    """
    behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

    async def unary(received: Any, context: Any) -> Any:
        async with around(received, context) as request:
            return await behaviour(request, context)

    async def stream(received: Any, context: Any) -> None:
        async with around(received, context) as request:
            await _write(behaviour(request, context), context)

    behave = stream if handler.response_streaming else unary
    # Bytes: an error of gRPC's own reading would pass by the table of errors.
    deserialize = None if late else handler.request_deserializer
    return _made(handler, behave, late or handler.request_streaming, deserialize)


async def _only(contents: AsyncIterator[bytes]) -> bytes:
    """Receives the bytes of the request of a method that has one; raises `InvalidInputError`."""
    async for content in contents:
        return content
    raise InvalidInputError("request", "is missing")


async def _write(answers: Any, context: Any) -> None:
    """Writes the responses of a call.

    If gRPC did it, a deadline that expires during a write to a slow client would interrupt its code instead of this.
    """
    if not hasattr(answers, "__aiter__"):
        await answers
        return
    async with aclosing(answers):
        async for answer in answers:
            await context.write(answer)


def _made(handler: Any, behaviour: Any, request_streaming: bool, deserialize: Any) -> Handler:
    make: Any = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[request_streaming, handler.response_streaming]
    made: Handler = make(
        behaviour,
        request_deserializer=deserialize,
        response_serializer=handler.response_serializer,
    )
    return made


async def abort(context: Any, error: BaseException, method: str) -> None:
    """Ends a call with the status of an exception; does not return."""
    status = status_of(error, during=method)
    await context.abort(
        reason_of(error).code, status.message, trailing_metadata=((DETAILS_KEY, status.SerializeToString()),)
    )
