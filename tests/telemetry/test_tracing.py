"""Traces, as a collector gets them: one for each job, whichever way it takes."""

import subprocess
import sys
from collections.abc import Iterable, Iterator

import grpc
import pytest
import structlog
from opentelemetry.trace import SpanKind

from harness.collector import Collector, Seen
from harness.grpc_server import asynchronous, served
from harness.paths import ROOT
from harness.queue import HARMLESS_WARNINGS, WAIT, clear, gather, read_all, settings_for, task, wait_until
from harness.servers import ValkeyServer
from smalti.errors import InvalidInputError
from smalti.messages import EncodeTask, GenerateTask, Message, Stage, Trace, parse
from smalti.queue import BrokerPublisher, Delivery, consume
from smalti.rpc.channel import channel
from smalti.rpc.settings import RpcSettings
from smalti.service.compute import ComputeThread
from smalti.storage import MemoryStore, ObjectRef
from smalti.telemetry import Metrics, Telemetry, tracing
from smalti.telemetry.logs import about
from smalti.telemetry.messages import here, sending, within
from smalti.v1.encoder_pb2 import EncodeRequest
from smalti.v1.encoder_pb2_grpc import EncoderServiceStub
from smalti.v1.generator_pb2 import GenerateRequest
from smalti.v1.generator_pb2_grpc import GeneratorServiceStub

pytestmark = [pytest.mark.filterwarnings(each) for each in HARMLESS_WARNINGS]

TRACE = "0af7651916cd43dd8448eb211c80319c"
GIVEN = Trace(traceparent=f"00-{TRACE}-b7ad6b7169203331-01", tracestate="vendor=1")


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as made:
        yield made


@pytest.fixture
def traced(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[tracing.Tracing]:
    """The traces of this process; what it has recorded is with the collector once it is closed."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    collector.clear()
    made = tracing.start("encoder")
    assert made is not None
    yield made
    made.close()


def one(spans: list[Seen]) -> Seen:
    assert len(spans) == 1
    return spans[0]


def test_job_is_one_trace_through_the_queues(
    valkey: ValkeyServer, collector: Collector, traced: tracing.Tracing
) -> None:
    settings = settings_for(valkey)
    clear(settings)
    store = Telemetry(Metrics("ranker"), None, None).store(MemoryStore())

    def encode(delivery: Delivery) -> Iterable[Message]:
        message = delivery.message
        assert isinstance(message, EncodeTask)
        tracing.event("encoded", tokens=3)
        ref = store.put(message.keys.encoding, b"content")
        return [*message.next(ref), message.done(ref)]

    def generate(delivery: Delivery) -> Iterable[Message]:
        assert isinstance(delivery.message, GenerateTask)
        generated.append(delivery.message.trace)
        raise InvalidInputError("encoding", "of the prompt 'a secret cat' is bad")

    generated: list[Trace | None] = []
    publisher = BrokerPublisher(settings)
    with tracing.span("create", SpanKind.SERVER):
        publisher.publish(task("j1", prompt="a secret cat"))
    for stage, handler in ((Stage.ENCODE, encode), (Stage.GENERATE, generate)):
        with consume(stage, handler, concurrency=1, publisher=publisher, settings=settings) as consumption:
            assert consumption.wait_until_ready(WAIT)
            wait_until(lambda: len(read_all(settings, "events")) == 1)
    publisher.close()
    traced.close()

    create = one(collector.named("create"))
    path = [create]
    for name, kind in (
        ("send encode.interactive", "producer"),
        ("process encode.interactive", "consumer"),
        ("send generate.interactive", "producer"),
        ("process generate.interactive", "consumer"),
    ):
        span = one(collector.named(name))
        assert (span.kind, span.parent) == (kind, path[-1].span)
        assert span.attributes["smalti.job"] == span.attributes["messaging.message.conversation_id"] == "j1"
        assert span.attributes["messaging.destination.name"] == name.split()[1]
        path.append(span)
    encoded, drawn = path[2], path[4]
    assert [name for name, _ in encoded.events] == ["encoded"]
    assert create.begin <= create.end <= encoded.events[0][1] <= encoded.end
    assert encoded.attributes["smalti.outcome"] == "done"
    put = one(collector.named("put object"))
    assert (put.parent, put.attributes["smalti.object.key"]) == (encoded.span, "jobs/j1/encoding.safetensors")
    assert {span.parent for span in collector.named("send events")} == {encoded.span, drawn.span}
    assert (drawn.attributes["smalti.chunk"], drawn.attributes["smalti.outcome"]) == (0, "failed")
    assert generated[0] is not None
    assert generated[0].traceparent.startswith(f"00-{create.trace}-{path[3].span}-")
    assert {span.trace for span in collector.spans} == {create.trace}
    assert {span.service for span in collector.spans} == {"smalti-encoder"}
    assert "secret" not in str(collector.spans)


def test_thread_of_an_engine_speaks_for_whoever_asks(collector: Collector, traced: tracing.Tracing) -> None:
    compute = ComputeThread(max_permits=1, stall_seconds=WAIT)
    for job in ("one", "two"):
        with tracing.span(job), about(job=job):
            assert compute.run(structlog.contextvars.get_contextvars) == {"job": job}
    compute.close()
    traced.close()
    for job in ("one", "two"):
        assert [name for name, _ in one(collector.named(job)).events] == ["compute begins", "compute ends"]


def test_trace_that_was_kept_is_gone_on_with(collector: Collector, traced: tracing.Tracing) -> None:
    with sending(task(trace=GIVEN)) as sent:
        assert sent.trace is not None
        assert sent.trace.tracestate == GIVEN.tracestate
    with within(GIVEN):
        assert here() == GIVEN
        with sending(task()):
            pass
    with within(None), tracing.span("other"):
        pass
    traced.close()
    assert {(span.trace, span.parent) for span in collector.named("send encode.interactive")} == {
        (TRACE, "b7ad6b7169203331")
    }
    assert one(collector.named("other")).trace != TRACE


@asynchronous
async def test_calls_belong_to_the_trace_of_the_caller() -> None:
    telemetry = Telemetry(Metrics("generator"), None, None)
    with Collector() as collector, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", collector.endpoint)
        patch.setenv("OTEL_SERVICE_NAME", "mine")
        traced = tracing.start("generator")
        assert traced is not None
        options = {"settings": RpcSettings(attempts=1), "interceptors": telemetry.client_interceptors}
        async with (
            served(interceptors=telemetry.interceptors) as (server, servicer),
            channel(server.address, **options) as to_server,  # type: ignore[arg-type]
            channel(server.address) as plain,
        ):
            encoder, generator = EncoderServiceStub(to_server), GeneratorServiceStub(to_server)
            with tracing.span("caller"):
                await encoder.Encode(EncodeRequest(prompt="a secret cat"))
                servicer.go_on.set()
                assert len([answer async for answer in generator.Generate(GenerateRequest())]) == 2
            servicer.failures += [InvalidInputError("prompt", "secret"), RuntimeError("secret")]
            for _ in range(2):
                with pytest.raises(grpc.aio.AioRpcError):
                    await encoder.Encode(EncodeRequest(prompt="a secret cat"))
            metadata = (("traceparent", GIVEN.traceparent), ("x-request-id", "mine-1"))
            await EncoderServiceStub(plain).Encode(EncodeRequest(prompt="x"), metadata=metadata)
        traced.close()
        telemetry.close()
        caller = one(collector.named("caller"))
        served_spans = [span for span in collector.spans if span.kind == "server"]
        called, failed_input, failed, outside = (
            span for span in served_spans if span.attributes["rpc.method"] == "Encode"
        )
        client = {span.span: span for span in collector.spans if span.kind == "client"}
        assert client[called.parent].parent == caller.span
        assert called.name == client[called.parent].name == "smalti.v1.EncoderService/Encode"
        assert called.attributes["rpc.grpc.status_code"] == 0
        assert one(collector.named("smalti.v1.GeneratorService/Generate")).parent == caller.span
        assert (failed_input.failed, failed_input.attributes["rpc.grpc.status_code"]) == (False, 3)
        assert (failed.failed, failed.attributes["error.type"]) == (True, "INTERNAL")
        assert client[failed.parent].failed
        assert (outside.trace, outside.attributes["smalti.request"]) == (TRACE, "mine-1")
        assert {span.service for span in collector.spans} == {"mine"}
        assert "secret" not in str(collector.spans)


def test_collector_that_is_away_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector() as gone:
        pass
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", gone.endpoint)
    traced = tracing.start("encoder")
    assert traced is not None
    with tracing.span("lost"):
        pass
    traced.close()
    assert not tracing.is_recording()


def test_without_an_endpoint_traces_pass_and_nothing_is_recorded(valkey: ValkeyServer) -> None:
    settings = settings_for(valkey)
    clear(settings)

    def handle(delivery: Delivery) -> Iterable[Message]:
        assert isinstance(delivery.message, EncodeTask)
        return delivery.message.next(ObjectRef(key=delivery.message.keys.encoding, sha256="0" * 64))

    publisher = BrokerPublisher(settings)
    with consume(Stage.ENCODE, handle, concurrency=1, publisher=publisher, settings=settings):
        publisher.publish(task(trace=GIVEN))
        sent = gather(lambda: read_all(settings, "generate.interactive"), bool)
    publisher.close()
    assert parse(sent[0][0]).trace == GIVEN


def test_without_an_endpoint_the_sdk_is_not_loaded() -> None:
    script = (
        "import sys; from smalti import telemetry; telemetry.start('encoder').close();"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    environment = {"PATH": "", "SMALTI_METRICS_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_what_cannot_be_sent_that_way_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    with pytest.raises(InvalidInputError, match=r"^OTEL_EXPORTER_OTLP_PROTOCOL: traces are sent by grpc, "):
        tracing.start("encoder")
