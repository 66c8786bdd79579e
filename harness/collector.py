"""A collector of traces: receives spans by OTLP over gRPC and keeps them in memory."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True)
class RecordedSpan:
    """A span that was exported."""

    service: str
    name: str
    kind: str
    trace: str
    span: str
    parent: str
    """The id of the parent span; empty for the root of a trace."""
    attributes: dict[str, Any]
    begin: float
    """Unix time of its start."""
    end: float
    """Unix time of its end."""
    events: tuple[tuple[str, float], ...]
    """Name and Unix time of each event."""
    failed: bool


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Listens on a free port of 127.0.0.1 while it is entered."""

    def __init__(self) -> None:
        """Binds the port; `endpoint` is its URL."""
        self._lock = threading.Lock()
        self._spans: list[RecordedSpan] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    @property
    def spans(self) -> list[RecordedSpan]:
        """The spans received so far."""
        with self._lock:
            return list(self._spans)

    def named(self, name: str) -> list[RecordedSpan]:
        """Returns the spans with a name received so far."""
        return [span for span in self.spans if span.name == name]

    def clear(self) -> None:
        """Forgets the spans received so far."""
        with self._lock:
            self._spans.clear()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Receives spans."""
        received = [
            _recorded(_attributes(resource.resource).get("service.name", ""), span)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self._lock:
            self._spans += received
        return trace_service_pb2.ExportTraceServiceResponse()

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(0).wait()


def _attributes(holder: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in holder.attributes}


def _recorded(service: str, span: Any) -> RecordedSpan:
    return RecordedSpan(
        service=service,
        name=span.name,
        kind=span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        trace=span.trace_id.hex(),
        span=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        attributes=_attributes(span),
        begin=span.start_time_unix_nano / 1e9,
        end=span.end_time_unix_nano / 1e9,
        events=tuple((event.name, event.time_unix_nano / 1e9) for event in span.events),
        failed=span.status.code == span.status.STATUS_CODE_ERROR,
    )
