"""Traces by OpenTelemetry: one for each job, from the gateway through the queues and the services.

Tracing is on when `OTEL_EXPORTER_OTLP_ENDPOINT` is set; OpenTelemetry's other variables apply as well. Otherwise
nothing is recorded and the SDK is not imported, but the trace of an incoming message is still passed on.
"""

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NoOpTracer, Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from smalti.errors import InvalidInputError
from smalti.network import check_plaintext

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

logger = logging.getLogger(__name__)

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
INSECURE: Final = ("OTEL_EXPORTER_OTLP_TRACES_INSECURE", "OTEL_EXPORTER_OTLP_INSECURE")
COMPUTE_BEGINS: Final = "compute begins"
COMPUTE_ENDS: Final = "compute ends"
"""The events of a span between which an engine computes for it, alone or in a batch."""
FLUSH_SECONDS = 2.0
"""Time for exporting the last spans when the process ends."""

Value = str | int | float | bool
"""The type of an attribute."""

_PROPAGATOR = TraceContextTextMapPropagator()
_tracer: Tracer = NoOpTracer()


class Tracing:
    """The tracing of this process; made by `start`."""

    def __init__(self, provider: "TracerProvider", exporter: "SpanExporter") -> None:
        """Starts recording, in place of an earlier tracing."""
        global _tracer
        self._provider = provider
        self._exporter = exporter
        _tracer = provider.get_tracer("smalti")

    def close(self) -> None:
        """Stops recording, and exports the remaining spans."""
        global _tracer
        _tracer = NoOpTracer()
        # The exporter retries for longer than the end of a process may take.
        closing = threading.Thread(target=self._provider.shutdown, name="export-last-spans", daemon=True)
        closing.start()
        closing.join(FLUSH_SECONDS)
        if closing.is_alive():
            logger.warning("the last spans are lost: the collector does not accept them")
            self._exporter.shutdown()
            closing.join(FLUSH_SECONDS)


def start(service: str) -> Tracing | None:
    """Starts recording if an endpoint is set; otherwise returns None.

    Args:
        service: the name of the service in the spans; `OTEL_SERVICE_NAME` overrides it.

    Raises:
        InvalidInputError: a variable has an unsupported value.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return None
    for name in PROTOCOLS:
        if os.environ.get(name, "") not in ("", "grpc"):
            raise InvalidInputError(name, f"{os.environ[name]!r} is not supported, only grpc; unset it")
    _check_collector()
    try:
        # Some of the variables are read when the SDK is imported.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: f"smalti-{service}"}
        provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        exporter = OTLPSpanExporter()
        provider.add_span_processor(BatchSpanProcessor(exporter))
    except ValueError as error:
        raise InvalidInputError(ENDPOINTS[1], f"tracing cannot be set up: {error}") from error
    return Tracing(provider, exporter)


def _check_collector() -> None:
    """Raises `InvalidInputError` if spans would travel to another machine in plaintext.

    The address is read as the exporter reads it: TLS for https://, plaintext for http://, and for an address without a
    scheme as OTEL_EXPORTER_OTLP_INSECURE says.
    """
    name = next(name for name in ENDPOINTS if os.environ.get(name))
    scheme, _, rest = os.environ[name].rpartition("://")
    said = next(
        (value for each in INSECURE if (value := os.environ.get(each)) is not None), str(scheme == "http")
    )
    if scheme != "https" and said.lower() == "true":
        try:
            host = urlsplit(f"//{rest}").hostname or ""
        except ValueError:
            raise InvalidInputError(name, "is not a valid address; check its host and port") from None
        check_plaintext(host, name, "is not https://")


@contextmanager
def span(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Mapping[str, Value] | None = None,
    parent: Context | None = None,
    *,
    fails: bool = True,
) -> Iterator[Span]:
    """Records the block as a span.

    Of an exception only the type is recorded, since its text may contain a prompt.

    Args:
        name: the name of the span.
        kind: the kind of the span.
        attributes: the attributes that are known at its start.
        parent: None is the current span of the thread or task.
        fails: whether an exception marks the span as failed; if not, the block calls `fail` itself.
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
    """Like `span`, but records only within another span, so that periodic work does not make traces of its own."""
    within = trace.get_current_span().get_span_context().is_valid
    return span(name, kind, attributes) if within else nullcontext()


def fail(current: Span, kind: str) -> None:
    """Marks a span as failed, with the kind of the error."""
    current.set_attribute("error.type", kind)
    current.set_status(StatusCode.ERROR)


def event(name: str, **attributes: Value) -> None:
    """Adds an event to the current span."""
    trace.get_current_span().add_event(name, attributes)


def extract(carrier: Mapping[str, str]) -> Context | None:
    """Returns the context from `traceparent` and `tracestate`, or None if they are missing or invalid."""
    context = _PROPAGATOR.extract(carrier, Context())
    return context if trace.get_current_span(context).get_span_context().is_valid else None


def inject() -> dict[str, str]:
    """Returns `traceparent` and `tracestate` of the current span; empty without one."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier


def is_recording() -> bool:
    """Returns whether this process records spans."""
    return not isinstance(_tracer, NoOpTracer)


def current_span() -> Any:
    """Returns the current span of the thread or task; a no-op span without one."""
    return trace.get_current_span()
