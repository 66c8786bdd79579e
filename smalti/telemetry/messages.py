"""What is told of a message on its way: the spans of its sending and its handling, and what the log says of it."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import Span, SpanKind

from smalti.messages import EncodeTask, Message, Progress, StageDone, Trace
from smalti.telemetry import tracing
from smalti.telemetry.logs import about, of_message

# As OpenTelemetry's conventions for messaging name it.
SYSTEM = "celery"
MAX_STATE_LENGTH = 512


@contextmanager
def sending(message: Message) -> Iterator[Message]:
    """Gives the message with the trace that it goes on in; the block sends it.

    The trace is that of this thread or task, or, where there is none, the one that the message has already.
    """
    if not tracing.is_recording() or isinstance(message, Progress):
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
        parent=None if tracing.inject() else trace_of(message),
    ):
        yield message.model_copy(update={"trace": here()})


@contextmanager
def handling(message: Message, queue: str) -> Iterator[Span]:
    """Lets the log and the traces say what the block is about: the handling of a message from a queue."""
    with about(**of_message(message)):
        if isinstance(message, Progress):
            yield tracing.current_span()
            return
        operation = {"messaging.operation.name": "process", "messaging.operation.type": "process"}
        attributes = {**_attributes(message, queue), **operation}
        with tracing.span(f"process {queue}", SpanKind.CONSUMER, attributes, trace_of(message)) as span:
            yield span


def here() -> Trace | None:
    """Returns the trace of this thread or task, as it goes into a message; None where there is none."""
    carrier = tracing.inject()
    if not carrier:
        return None
    # What others keep with a trace may be left out, and has to be where it is longer than the recommendation asks for.
    state = carrier.get("tracestate", "")
    return Trace(
        traceparent=carrier["traceparent"], tracestate=state if len(state) <= MAX_STATE_LENGTH else ""
    )


@contextmanager
def within(trace: Trace | None) -> Iterator[None]:
    """Lets the block go on in a trace that was kept: what it sends belongs to it."""
    context = trace and tracing.extract(trace.model_dump())
    if not context:
        yield
        return
    token = attach(context)
    try:
        yield
    finally:
        detach(token)


def trace_of(message: Message) -> Context | None:
    """Returns what a message says of its trace."""
    return tracing.extract(message.trace.model_dump()) if message.trace else None


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
