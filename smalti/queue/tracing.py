"""Spans and log fields of messages: how sending and handling appear in traces and logs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind

from smalti.messages import EncodeTask, Message, Progress, ShardProgress, StageDone, Trace
from smalti.telemetry import tracing
from smalti.telemetry.logs import about

# The values of OpenTelemetry's semantic conventions for messaging.
SYSTEM = "celery"
MAX_STATE_LENGTH = 512


@contextmanager
def sending(message: Message) -> Iterator[Message]:
    """Yields the message with the trace in which it continues; the block sends it.

    The trace is that of the current thread or task. Without one, the message keeps its own.
    """
    if not tracing.is_recording() or isinstance(message, Progress | ShardProgress):
        yield message
        return
    with tracing.span(
        f"send {message.queue}",
        SpanKind.PRODUCER,
        {
            **_attributes(message, message.queue),
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
        },
        parent=None if tracing.inject() else _trace_of(message),
    ):
        yield message.model_copy(update={"trace": current_trace()})


@contextmanager
def handling(message: Message, queue: str) -> Iterator[Span]:
    """Adds the message to the log lines and traces of the block, which handles it."""
    with about(**_log_fields(message)):
        if isinstance(message, Progress | ShardProgress):
            yield tracing.current_span()
            return
        operation = {"messaging.operation.name": "process", "messaging.operation.type": "process"}
        attributes = {**_attributes(message, queue), **operation}
        with tracing.span(f"process {queue}", SpanKind.CONSUMER, attributes, _trace_of(message)) as span:
            yield span


def current_trace() -> Trace | None:
    """Returns the trace of the current thread or task as a message carries it, or None without one."""
    carrier = tracing.inject()
    if not carrier:
        return None
    # W3C Trace Context allows tracestate to be dropped, and does not require more than 512 characters to be kept.
    state = carrier.get("tracestate", "")
    return Trace(
        traceparent=carrier["traceparent"], tracestate=state if len(state) <= MAX_STATE_LENGTH else ""
    )


def _trace_of(message: Message) -> Context | None:
    return tracing.extract(message.trace.model_dump()) if message.trace else None


def _log_fields(message: Message) -> dict[str, Any]:
    """Returns the log fields of a message: what identifies it, never its content."""
    return {
        "job": message.job,
        "stage": getattr(message, "stage", message.stage_queue).value,
        "chunk": getattr(message, "chunk", None),
        "attempt": message.attempt,
    }


def _attributes(message: Message, queue: str) -> dict[str, tracing.Value]:
    known: dict[str, tracing.Value] = {
        "messaging.system": SYSTEM,
        "messaging.destination.name": queue,
        "messaging.message.conversation_id": message.job,
        "smalti.job": message.job,
        "smalti.attempt": message.attempt,
        "smalti.lease": message.lease,
    }
    chunk = getattr(message, "chunk", None)
    if chunk is not None:
        known["smalti.chunk"] = chunk
    if isinstance(message, EncodeTask):
        known["smalti.chunks"] = len(message.chunks)
    if isinstance(message, StageDone):
        known["smalti.stage"] = message.stage.value
    return known
