"""Traces by OpenTelemetry: one for each job, from the gateway through the queues and the services.

They are on when `OTEL_EXPORTER_OTLP_ENDPOINT` is set; OpenTelemetry's other variables hold as well. Otherwise nothing
is recorded, and its SDK is not even imported; a trace that comes with a message is passed on nevertheless.
"""

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NoOpTracer, Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from smalti.errors import InvalidInputError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

logger = logging.getLogger(__name__)

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
COMPUTE_BEGINS: Final = "compute begins"
COMPUTE_ENDS: Final = "compute ends"
"""The events of a span between which an engine works for it, alone or among others."""
FLUSH_SECONDS = 2.0
"""How long what was recorded last may take to be sent when the process ends."""

Value = str | int | float | bool
"""What an attribute may be."""

_PROPAGATOR = TraceContextTextMapPropagator()
_tracer: Tracer = NoOpTracer()


class Tracing:
    """The traces of this process; `start` makes it."""

    def __init__(self, provider: "TracerProvider", exporter: "SpanExporter") -> None:
        """Records from now on; replaces what recorded before."""
        global _tracer
        self._provider = provider
        self._exporter = exporter
        _tracer = provider.get_tracer("smalti")

    def close(self) -> None:
        """Sends what was recorded, and records no more."""
        global _tracer
        _tracer = NoOpTracer()
        # What a collector does not take is tried again for longer than anybody waits for the end of a process.
        closing = threading.Thread(target=self._provider.shutdown, name="traces-end", daemon=True)
        closing.start()
        closing.join(FLUSH_SECONDS)
        if closing.is_alive():
            logger.warning("the last traces are lost: the collector does not take them")
            self._exporter.shutdown()
            closing.join(FLUSH_SECONDS)


def start(service: str) -> Tracing | None:
    """Begins to record, where an endpoint is set; otherwise returns None.

    Args:
        service: the name under which the spans are found; `OTEL_SERVICE_NAME` goes before it.

    Raises:
        InvalidInputError: a variable asks for what cannot be done.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return None
    for name in PROTOCOLS:
        if os.environ.get(name, "") not in ("", "grpc"):
            raise InvalidInputError(name, f"traces are sent by grpc, not {os.environ[name]!r}; unset it")
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: f"smalti-{service}"}
    try:
        provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        exporter = OTLPSpanExporter()
        provider.add_span_processor(BatchSpanProcessor(exporter))
    except ValueError as error:
        raise InvalidInputError(ENDPOINTS[1], f"traces cannot be sent: {error}") from error
    return Tracing(provider, exporter)


@contextmanager
def span(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Mapping[str, Value] | None = None,
    parent: Context | None = None,
    *,
    fails: bool = True,
) -> Iterator[Span]:
    """Records the block as a span, and how it ends.

    Of an exception it keeps the type alone: its text may have in it what is not for everybody.

    Args:
        name: the span's.
        kind: which side of what it is.
        attributes: what is known at the beginning.
        parent: None is the span of this thread or task.
        fails: an exception makes it a failed one; otherwise the block says so itself.
    """
    with _tracer.start_as_current_span(
        name, parent, kind, dict(attributes or {}), record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except BaseException as error:
            if fails:
                fail(current, type(error).__name__)
            raise


def inner_span(
    name: str, kind: SpanKind, attributes: Mapping[str, Value]
) -> AbstractContextManager[Span | None]:
    """As `span`, but records nothing outside of another one: what is done now and then would be traces of its own."""
    within = trace.get_current_span().get_span_context().is_valid
    return span(name, kind, attributes) if within else nullcontext()


def fail(current: Span, kind: str) -> None:
    """Marks a span as failed; `kind` says by what, in a word."""
    current.set_attribute("error.type", kind)
    current.set_status(StatusCode.ERROR)


def event(name: str, **attributes: Value) -> None:
    """Notes a moment in the span of this thread or task."""
    trace.get_current_span().add_event(name, attributes)


def extract(carrier: Mapping[str, str]) -> Context | None:
    """Reads `traceparent` and `tracestate`; None where there are none, or none that can be read."""
    context = _PROPAGATOR.extract(carrier, Context())
    return context if trace.get_current_span(context).get_span_context().is_valid else None


def inject() -> dict[str, str]:
    """Returns `traceparent` and `tracestate` of the span of this thread or task; nothing where there is none."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier


def is_recording() -> bool:
    """Says whether this process records."""
    return not isinstance(_tracer, NoOpTracer)


def current_span() -> Any:
    """Returns the span of this thread or task; one that records nothing where there is none."""
    return trace.get_current_span()
