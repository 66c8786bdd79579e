"""What surrounds every request: its id, the caller, metrics, the trace, headers, and the answer to an error."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from opentelemetry.trace import SpanKind
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smalti.rpc.observer import REQUEST_ID, request_id
from smalti.rpc.reasons import CLIENT_CLOSED_REQUEST
from smalti.services.web.failures import failure_of
from smalti.services.web.gateway import Caller, current_caller
from smalti.telemetry import Metrics, tracing
from smalti.telemetry.logs import about

HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Headers of every answer that does not set them itself."""
OTHER: Final = "other"
"""The route of a request that no route matches, so that its path cannot become a label."""


class Observer:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._running: Counter[str] = Counter()
        metrics.watch("requests_running", lambda: dict(self._running))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        client = scope.get("client")
        caller = Caller(
            address=client[0] if client else "",
            request_id=request_id(headers.get(REQUEST_ID, "")),
            authorization=headers.get("authorization", ""),
        )
        token = current_caller.set(caller)
        answer = _Answer(send, caller.request_id)
        began = time.perf_counter()
        method = scope["method"]
        self._running[method] += 1
        attributes = {"http.request.method": method, "smalti.request": caller.request_id}
        try:
            with (
                about(request=caller.request_id, client=caller.address or None),
                tracing.span(
                    method, SpanKind.SERVER, attributes, tracing.extract(headers), fails=False
                ) as span,
            ):
                await self._respond(scope, receive, answer)
                route = _route(scope)
                span.update_name(f"{method} {route}")
                span.set_attribute("http.route", route)
                span.set_attribute("http.response.status_code", answer.status)
                if answer.status >= 500:
                    tracing.fail(span, str(answer.status))
        finally:
            self._running[method] -= 1
            self._count(f"{method} {_route(scope)}", answer.status, time.perf_counter() - began)
            current_caller.reset(token)

    async def _respond(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        try:
            await self._app(scope, receive, answer.send)
        except Exception as error:
            if answer.status != CLIENT_CLOSED_REQUEST:
                # The answer has begun, or is complete. If it is incomplete, uvicorn closes the connection.
                return
            failure = failure_of(error, during=f"{scope['method']} {_route(scope)}")
            await failure.response(scope["path"])(scope, receive, answer.send)

    def _count(self, entry: str, status: int, seconds: float) -> None:
        outcome, reason = _outcome(status)
        self._metrics.add("requests_total", entry=entry, outcome=outcome, reason=reason)
        self._metrics.observe("request_seconds", seconds, entry=entry, outcome=outcome)


class _Answer:
    """The answer to a request on its way to the client."""

    def __init__(self, send: Send, request: str) -> None:
        self._send = send
        self._request = request
        self.status = CLIENT_CLOSED_REQUEST
        """The status; `CLIENT_CLOSED_REQUEST` until the answer begins."""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers[REQUEST_ID] = self._request
        await self._send(message)


def _route(scope: Scope) -> str:
    route: Any = scope.get("route")
    return str(getattr(route, "path", OTHER))


def _outcome(status: int) -> tuple[str, str]:
    """Returns the outcome and the reason of an answer for metrics."""
    if status < 400:
        return "done", ""
    if status == CLIENT_CLOSED_REQUEST:
        return "cancelled", str(status)
    if status == 504:
        return "expired", str(status)
    return ("refused" if status in (429, 503) else "failed"), str(status)
