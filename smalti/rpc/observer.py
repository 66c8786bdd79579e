"""Metrics, spans and log fields of gRPC calls."""

import asyncio
import re
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
from opentelemetry.trace import SpanKind

from smalti.rpc.calls import EXEMPT, Handler, wrapped
from smalti.rpc.places import CLIENT
from smalti.telemetry import Metrics, tracing
from smalti.telemetry.logs import about

REQUEST_ID = "x-request-id"
"""The metadata key with which a client names its call in the log."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")

_OUTCOMES = {
    grpc.StatusCode.OK: "done",
    grpc.StatusCode.CANCELLED: "cancelled",
    grpc.StatusCode.DEADLINE_EXCEEDED: "expired",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "refused",
    grpc.StatusCode.UNAVAILABLE: "refused",
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}
# Errors of the server. The others are the caller's, and leave the span unmarked.
_FAULTS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}


class CallObserver(grpc.aio.ServerInterceptor):
    """Observes every call of a server except health and reflection."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._running: Counter[str] = Counter()
        metrics.watch("requests_running", lambda: dict(self._running))

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
        return wrapped(handler, lambda request, context: self._call(method, metadata, request, context))

    @asynccontextmanager
    async def _call(
        self, method: str, metadata: dict[str, str], request: Any, context: Any
    ) -> AsyncIterator[Any]:
        service, _, entry = method.lstrip("/").partition("/")
        identity = request_id(metadata.get(REQUEST_ID, ""))
        attributes = {
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": entry,
            "smalti.request": identity,
        }
        code, begin = grpc.StatusCode.UNKNOWN, time.perf_counter()
        self._running[entry] += 1
        try:
            with (
                about(request=identity, client=metadata.get(CLIENT)),
                tracing.span(
                    method.lstrip("/"), SpanKind.SERVER, attributes, tracing.extract(metadata), fails=False
                ) as span,
            ):
                try:
                    yield request
                    code = grpc.StatusCode.OK
                except asyncio.CancelledError:
                    code = _code(context, grpc.StatusCode.CANCELLED)
                    raise
                except BaseException:
                    code = _code(context, grpc.StatusCode.UNKNOWN)
                    raise
                finally:
                    span.set_attribute("rpc.grpc.status_code", code.value[0])
                    if code in _FAULTS:
                        tracing.fail(span, code.name)
        finally:
            self._running[entry] -= 1
            outcome = _OUTCOMES.get(code, "failed")
            reason = "" if code is grpc.StatusCode.OK else code.name.lower()
            seconds = time.perf_counter() - begin
            self._metrics.add("requests_total", entry=entry, outcome=outcome, reason=reason)
            self._metrics.observe("request_seconds", seconds, entry=entry, outcome=outcome)


def request_id(asked: str) -> str:
    """Returns the id of a request for the log: the one that the client has sent, or a new one."""
    return asked if _ID.fullmatch(asked) else uuid.uuid4().hex


def _code(context: Any, otherwise: grpc.StatusCode) -> grpc.StatusCode:
    """Returns the status of a call, which gRPC gives as a number or as a `StatusCode`."""
    code = context.code()
    code = _CODES.get(code, code)
    return code if isinstance(code, grpc.StatusCode) and code is not grpc.StatusCode.OK else otherwise


def with_metadata(details: Any, added: Mapping[str, str]) -> Any:
    """Returns the details of a client's call with more metadata."""
    metadata = grpc.aio.Metadata(*(details.metadata or ()))
    for key, value in added.items():
        metadata[key] = value
    return details._replace(metadata=metadata)


class UnaryCallTracer(grpc.aio.UnaryUnaryClientInterceptor):
    """Records calls with one response as spans."""

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:  # noqa: D102
        method = _text(client_call_details.method)
        with _calling(method) as span:
            call = await continuation(_traced(client_call_details), request)
            code = await call.code()
            span.set_attribute("rpc.grpc.status_code", code.value[0])
            if code is not grpc.StatusCode.OK:
                tracing.fail(span, code.name)
        return call


class StreamCallTracer(grpc.aio.UnaryStreamClientInterceptor):
    """Propagates the trace with streaming calls. They are not recorded: the caller decides when they end."""

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:  # noqa: D102
        return await continuation(_traced(client_call_details), request)


def client_interceptors() -> tuple[grpc.aio.ClientInterceptor, ...]:
    """Returns the interceptors with which a channel propagates the caller's trace."""
    return UnaryCallTracer(), StreamCallTracer()


def _traced(details: Any) -> Any:
    return with_metadata(details, tracing.inject())


def _calling(method: str) -> Any:
    service, _, name = method.lstrip("/").partition("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
    return tracing.span(method.lstrip("/"), SpanKind.CLIENT, attributes)


def _text(method: str | bytes) -> str:
    return method.decode() if isinstance(method, bytes) else method
