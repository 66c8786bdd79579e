"""Metrics, traces and log lines of messages."""

import logging
from collections.abc import Iterable, Iterator

import pytest
import structlog
from opentelemetry.trace import SpanKind

from harness.collector import Collector
from harness.objects import name_of, put_named
from harness.queue import HARMLESS_WARNINGS, clear, events, gather, read_all, settings_for, task
from harness.servers import ValkeyServer
from harness.telemetry import captured_log, only, recording, sample_reader
from harness.waiting import WAIT, wait_until
from smalti.errors import InvalidInputError, UnavailableError
from smalti.messages import EncodeTask, FailureReason, GenerateTask, Message, Stage, Trace, parse
from smalti.queue import (
    QUEUE_ENTRY,
    BrokerPublisher,
    Delivery,
    DeliveryMetrics,
    Outcome,
    PermanentError,
    consume,
    current_trace,
)
from smalti.queue.tracing import handling, sending
from smalti.storage import MemoryStore, ObjectRef, content_key
from smalti.storage.timed import TimedStore
from smalti.telemetry import Metrics, tracing

pytestmark = [pytest.mark.filterwarnings(each) for each in HARMLESS_WARNINGS]

TRACE, GIVEN_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = Trace(traceparent=f"00-{TRACE}-{GIVEN_SPAN}-01", tracestate="vendor=1")

Recording = tuple[Collector, tracing.Tracing]


@pytest.fixture
def recorded() -> Iterator[Recording]:
    with recording() as made:
        yield made


def test_deliveries_are_counted_by_outcome(valkey: ValkeyServer) -> None:
    settings = settings_for(valkey)
    clear(settings)

    def handle(delivery: Delivery) -> Iterable[Message]:
        message = delivery.message
        assert isinstance(message, EncodeTask)
        ref = ObjectRef(key=content_key(message.keys.encoding, "0" * 64), sha256="0" * 64)
        if message.job == "cancelled":
            raise PermanentError(FailureReason.CANCELLED, "it was cancelled")
        if message.job == "again":
            return [message.done(ref, skipped=True)]
        return [message.done(ref, seconds=0.25)]

    publisher, metrics = BrokerPublisher(settings), Metrics("encoder")
    value = sample_reader(metrics)
    consumer = consume(
        Stage.ENCODE,
        handle,
        concurrency=2,
        publisher=publisher,
        settings=settings,
        observer=DeliveryMetrics(metrics),
    )
    with consumer:
        publisher.publish(task("j1"))
        publisher.publish(task("again"))
        publisher.publish(task("cancelled"))
        publisher.publish(task("late", expires=1.0))
        publisher.publish_text(Stage.ENCODE, "smalti.encode.batch", "rubbish")
        wait_until(
            lambda: (
                sum(value("request_seconds_count", entry=QUEUE_ENTRY, outcome=each) for each in Outcome) == 5
            )
        )
    publisher.close()
    for outcome, reason, count in (
        ("done", "", 2),
        ("failed", "cancelled", 1),
        ("expired", "expired", 1),
        ("dead", "", 1),
    ):
        assert value("requests_total", entry=QUEUE_ENTRY, outcome=outcome, reason=reason) == count
    assert value("cancelled_total", where="encode") == 1
    assert value("dead_lettered_total") == 1
    assert value("duplicates_suppressed_total") == 1
    assert (value("stage_seconds_count", stage="encode"), value("stage_seconds_sum", stage="encode")) == (
        1,
        0.25,
    )
    assert value("request_queue_seconds_count") == 5
    assert value("request_queue_seconds_sum") < 5 * WAIT


def test_job_is_one_trace_through_the_queues(valkey: ValkeyServer, recorded: Recording) -> None:
    collector, traced = recorded
    settings = settings_for(valkey)
    clear(settings)
    store = TimedStore(MemoryStore(), Metrics("ranker"))

    def encode(delivery: Delivery) -> Iterable[Message]:
        message = delivery.message
        assert isinstance(message, EncodeTask)
        tracing.event("encoded", tokens=3)
        ref = put_named(store, message.keys.encoding, b"content")
        return [*message.next(ref, message.prompt), message.done(ref)]

    def generate(delivery: Delivery) -> Iterable[Message]:
        assert isinstance(delivery.message, GenerateTask)
        generated.append(delivery.message.trace)
        raise InvalidInputError("encoding", "of the prompt 'a secret cat' is bad")

    generated: list[Trace | None] = []
    publisher = BrokerPublisher(settings)
    with tracing.span("create", SpanKind.SERVER):
        publisher.publish(task("j1", prompt="a secret cat"))
    for stage, handler in ((Stage.ENCODE, encode), (Stage.GENERATE, generate)):
        with consume(stage, handler, concurrency=1, publisher=publisher, settings=settings) as consumer:
            assert consumer.wait_until_ready(WAIT)
            wait_until(lambda: len(read_all(settings, "smalti.events")) == 1)
    publisher.close()
    traced.close()

    create = only(collector.named("create"))
    path = [create]
    for name, kind in (
        ("send smalti.encode.interactive", "producer"),
        ("process smalti.encode.interactive", "consumer"),
        ("send smalti.generate.interactive", "producer"),
        ("process smalti.generate.interactive", "consumer"),
    ):
        span = only(collector.named(name))
        assert (span.kind, span.parent) == (kind, path[-1].span)
        assert span.attributes["smalti.job"] == span.attributes["messaging.message.conversation_id"] == "j1"
        assert span.attributes["messaging.destination.name"] == name.split()[1]
        path.append(span)
    encoded, failed = path[2], path[4]
    assert [name for name, _ in encoded.events] == ["encoded"]
    assert create.begin <= create.end <= encoded.events[0][1] <= encoded.end
    assert encoded.attributes["smalti.outcome"] == "done"
    put = only(collector.named("put object"))
    assert put.parent == encoded.span
    assert name_of(str(put.attributes["smalti.object.key"])) == "jobs/j1/encoding.safetensors"
    assert {span.parent for span in collector.named("send smalti.events")} == {encoded.span, failed.span}
    assert (failed.attributes["smalti.chunk"], failed.attributes["smalti.outcome"]) == (0, "failed")
    assert generated[0] is not None
    assert generated[0].traceparent.startswith(f"00-{create.trace}-{path[3].span}-")
    assert {span.trace for span in collector.spans} == {create.trace}
    assert {span.service for span in collector.spans} == {"smalti-encoder"}
    assert "secret" not in str(collector.spans)


def test_message_continues_the_trace_that_it_carries(recorded: Recording) -> None:
    collector, traced = recorded
    with sending(task(trace=GIVEN)) as sent:
        assert sent.trace is not None
        assert sent.trace.tracestate == GIVEN.tracestate
    with handling(task(trace=GIVEN), "smalti.encode.interactive"), sending(task()):
        pass
    with tracing.span("other"):
        pass
    traced.close()
    first, second = collector.named("send smalti.encode.interactive")
    handled = only(collector.named("process smalti.encode.interactive"))
    assert {first.trace, second.trace, handled.trace} == {TRACE}
    assert (first.parent, handled.parent) == (GIVEN_SPAN, GIVEN_SPAN)
    assert second.parent == handled.span
    assert only(collector.named("other")).trace != TRACE


def test_current_trace_is_that_of_the_message_being_handled() -> None:
    assert current_trace() is None
    with handling(task(trace=GIVEN), "smalti.encode.interactive"):
        assert current_trace() == GIVEN
    assert current_trace() is None


def test_traces_are_passed_on_when_nothing_is_recorded(valkey: ValkeyServer) -> None:
    settings = settings_for(valkey)
    clear(settings)

    def handle(delivery: Delivery) -> Iterable[Message]:
        assert isinstance(delivery.message, EncodeTask)
        asked = delivery.message
        return asked.next(
            ObjectRef(key=content_key(asked.keys.encoding, "0" * 64), sha256="0" * 64), asked.prompt
        )

    publisher = BrokerPublisher(settings)
    with consume(Stage.ENCODE, handle, concurrency=1, publisher=publisher, settings=settings):
        publisher.publish(task(trace=GIVEN))
        sent = gather(lambda: read_all(settings, "smalti.generate.interactive"), bool)
    publisher.close()
    assert parse(sent[0][0]).trace == GIVEN


def test_log_of_a_handler_names_the_work_and_never_the_prompt(valkey: ValkeyServer) -> None:
    settings = settings_for(valkey, attempts=2)
    clear(settings)

    def handle(delivery: Delivery) -> Iterable[Message]:
        message = delivery.message
        logging.getLogger("library").warning("in %s", message.job)
        structlog.get_logger().info("also in it", of=message.job)
        if message.job == "fails":
            raise RuntimeError("it is broken")
        if message.job == "waits":
            raise UnavailableError("it is away")
        return [message.done()]  # type: ignore[operator, union-attr]

    publisher = BrokerPublisher(settings)
    with captured_log() as written, recording() as (collector, traced):
        with consume(Stage.ENCODE, handle, concurrency=4, publisher=publisher, settings=settings):
            for job in ("works", "fails", "waits", "late"):
                publisher.publish(task(job, prompt="a secret cat", expires=1.0 if job == "late" else 4e9))
            publisher.publish_text(
                Stage.ENCODE, "smalti.encode.batch", task("x", "a secret cat").to_json()[:-1]
            )
            gather(lambda: events(settings), lambda found: len(found) == 4)
        traced.close()
        spans = {
            span.attributes["smalti.job"]: span
            for span in collector.named("process smalti.encode.interactive")
        }
    publisher.close()
    lines = written.lines
    for line in lines:
        if line["event"].startswith("in "):
            assert (line["job"], line["stage"]) == (line["event"][3:], "encode")
        if line["event"] == "also in it":
            assert line["job"] == line["of"]
    assert written.find("in works")["trace_id"] == spans["works"].trace
    assert {line["attempt"] for line in lines if line["event"] == "in fails"} == {1, 2}
    assert [
        line["job"]
        for line in lines
        if line["event"].startswith("the handler of encode at ('fails', 'encode', '0') failed [")
    ] == [
        "fails",
        "fails",
    ]
    dead = [line for line in lines if "dead-letter queue" in line["event"]]
    assert {line.get("job") for line in dead} == {"fails", "waits", None}
    assert "job" not in structlog.contextvars.get_contextvars()
    assert "secret" not in written.getvalue()
