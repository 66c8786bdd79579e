"""What a process counts, as Prometheus reads it."""

import asyncio
import re
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from harness.grpc_server import asynchronous, served
from harness.paths import DOCS
from harness.queue import HARMLESS_WARNINGS, WAIT, clear, settings_for, task, wait_until
from harness.servers import ValkeyServer
from smalti.engines.generator.requests import Candidate
from smalti.errors import InvalidInputError, OverloadedError
from smalti.messages import EncodeTask, FailureReason, Message, Stage
from smalti.parameters import SamplingParameters
from smalti.pipeline import Pipeline
from smalti.queue import BrokerPublisher, Delivery, Outcome, PermanentError, consume
from smalti.rpc.channel import channel
from smalti.rpc.settings import RpcSettings
from smalti.storage import (
    DamagedObjectError,
    JobKeys,
    LocalStore,
    MissingObjectError,
    ObjectRef,
    StoreUnavailableError,
)
from smalti.telemetry import QUEUE, Metrics, MetricsSettings, Telemetry
from smalti.telemetry.metrics import ALL, DEFINITIONS, PREFIX, SECONDS, STAGES, Kind
from smalti.telemetry.process import serve_metrics
from smalti.telemetry.store import TimedStore
from smalti.v1.encoder_pb2 import EncodeRequest
from smalti.v1.encoder_pb2_grpc import EncoderServiceStub
from smalti.v1.generator_pb2 import GenerateRequest
from smalti.v1.generator_pb2_grpc import GeneratorServiceStub

pytestmark = [pytest.mark.filterwarnings(each) for each in HARMLESS_WARNINGS]

DOCUMENT = DOCS / "metrics.md"


def read(metrics: Metrics) -> Callable[..., float]:
    """Returns what reads a sample, by its name without the prefix; 0 where there is none."""

    def value(name: str, **labels: str) -> float:
        own = {"service": metrics.service, "model": metrics.model}
        return metrics.registry().get_sample_value(PREFIX + name, {**own, **labels}) or 0.0

    return value


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    """An encoder's, with nothing but its metrics."""
    made = Telemetry(Metrics("encoder"), None, None)
    yield made
    made.close()


def test_every_metric_is_documented() -> None:
    rows = re.findall(
        r"^\| `smalti_(\w+)` \| (\w+) \| (.*?) \| (.*?) \| (.+) \|$", DOCUMENT.read_text(), re.MULTILINE
    )
    services = {ALL: "all", STAGES: "all stages"}
    assert rows == [
        (
            each.name,
            each.kind.value,
            ", ".join(f"`{label}`" for label in each.labels),
            services.get(each.services, ", ".join(each.services)),
            each.meaning,
        )
        for each in DEFINITIONS
    ]


def test_names_say_what_is_counted_and_in_which_unit() -> None:
    for each in DEFINITIONS:
        assert each.name.endswith("_total") == (each.kind is Kind.COUNTER) or each.name == "slots_total"
        assert (
            each.kind is not Kind.HISTOGRAM
            or each.name.endswith("_seconds")
            or each.name == "batch_occupancy"
        )
        assert not {"prompt", "job", "chunk", "request"} & set(each.labels)
    assert {f"{limit:.0e}"[0] for limit in SECONDS} == {"1", "2", "5"}


def test_service_has_its_own_and_says_who_it_is(telemetry: Telemetry) -> None:
    telemetry.metrics.model = "tiny"
    telemetry.metrics.add("redeliveries_total", 2)
    assert read(telemetry.metrics)("redeliveries_total") == 2
    with pytest.raises(KeyError):
        telemetry.metrics.add("images_total")
    with pytest.raises(KeyError):
        telemetry.watch("jobs_open", lambda: 1)
    with pytest.raises(ValueError, match="no gauge"):
        telemetry.watch("redeliveries_total", lambda: 1)
    with pytest.raises(ValueError, match="none of"):
        Metrics("painter")


def test_gauge_asks_whenever_it_is_read_and_one_that_fails_hides_no_other(telemetry: Telemetry) -> None:
    line = ["first"]
    telemetry.watch("requests_waiting", lambda: len(line))
    telemetry.watch("requests_running", lambda: {"queue": 2})
    telemetry.watch("requests_running", lambda: {"queue": 1, "Encode": 4})
    telemetry.watch("model_load_seconds", lambda: 1 / 0)
    value = read(telemetry.metrics)
    assert value("requests_waiting") == 1
    line.append("second")
    assert value("requests_waiting") == 2
    assert (value("requests_running", entry="queue"), value("requests_running", entry="Encode")) == (3, 4)
    assert value("model_load_seconds") != value("model_load_seconds")  # Not a number.


def test_endpoint_answers_at_a_free_port_and_says_what_is_wrong_with_another() -> None:
    metrics = Metrics("encoder")
    server = serve_metrics(metrics, MetricsSettings(port=0))
    assert server is not None
    telemetry = Telemetry(metrics, None, server)
    metrics.observe("stage_seconds", 0.3, stage="encode")
    with urllib.request.urlopen(f"http://127.0.0.1:{telemetry.metrics_port}/metrics") as answer:
        families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    assert "process_resident_memory_bytes" in families
    counts = {
        sample.labels["le"]: sample.value
        for sample in families["smalti_stage_seconds"].samples
        if sample.name.endswith("_bucket")
    }
    assert (counts["0.2"], counts["0.5"]) == (0, 1)
    with pytest.raises(InvalidInputError, match=r"^SMALTI_METRICS_PORT: cannot listen at 127.0.0.1:\d+: "):
        serve_metrics(metrics, MetricsSettings(port=telemetry.metrics_port))
    with pytest.raises(
        InvalidInputError, match=r"^SMALTI_METRICS_PORT: cannot listen at nowhere.invalid:1: "
    ):
        serve_metrics(metrics, MetricsSettings(port=1, host="nowhere.invalid"))
    telemetry.close()
    assert serve_metrics(metrics, MetricsSettings()) is None


def test_deliveries_are_counted_by_what_became_of_them(valkey: ValkeyServer, telemetry: Telemetry) -> None:
    settings = settings_for(valkey)
    clear(settings)

    def handle(delivery: Delivery) -> Iterable[Message]:
        message = delivery.message
        assert isinstance(message, EncodeTask)
        ref = ObjectRef(key=message.keys.encoding, sha256="0" * 64)
        if message.job == "cancelled":
            raise PermanentError(FailureReason.CANCELLED, "it was cancelled")
        if message.job == "again":
            return [message.done(ref, skipped=True)]
        return [message.done(ref, seconds=0.25)]

    publisher = BrokerPublisher(settings)
    value = read(telemetry.metrics)
    consumption = consume(
        Stage.ENCODE,
        handle,
        concurrency=2,
        publisher=publisher,
        settings=settings,
        observer=telemetry.observer,
    )
    with consumption:
        publisher.publish(task("j1"))
        publisher.publish(task("again"))
        publisher.publish(task("cancelled"))
        publisher.publish(task("late", expires=1.0))
        publisher.publish_text(Stage.ENCODE, "encode.batch", "rubbish")
        wait_until(
            lambda: sum(value("request_seconds_count", entry=QUEUE, outcome=each) for each in Outcome) == 5
        )
    publisher.close()
    for outcome, reason, count in (
        ("done", "", 2),
        ("failed", "cancelled", 1),
        ("expired", "expired", 1),
        ("dead", "", 1),
    ):
        assert value("requests_total", entry=QUEUE, outcome=outcome, reason=reason) == count
    assert value("cancelled_total", where="encode") == 1
    assert value("dead_lettered_total") == 1
    assert value("duplicates_suppressed_total") == 1
    assert (value("stage_seconds_count", stage="encode"), value("stage_seconds_sum", stage="encode")) == (
        1,
        0.25,
    )
    assert value("request_queue_seconds_count") == 5
    assert value("request_queue_seconds_sum") < 5 * WAIT


@asynchronous
async def test_calls_are_counted_by_their_status() -> None:
    telemetry = Telemetry(Metrics("generator"), None, None)
    value = read(telemetry.metrics)
    async with (
        served(interceptors=telemetry.interceptors) as (server, servicer),
        channel(server.address, RpcSettings(attempts=1)) as to_server,
    ):
        encoder, generator = EncoderServiceStub(to_server), GeneratorServiceStub(to_server)
        await encoder.Encode(EncodeRequest(prompt="x"))
        for error in (
            InvalidInputError("prompt", "is bad"),
            OverloadedError("full", 1),
            RuntimeError("broken"),
        ):
            servicer.failures.append(error)
            with pytest.raises(grpc.aio.AioRpcError):
                await encoder.Encode(EncodeRequest(prompt="x"))
        with pytest.raises(grpc.aio.AioRpcError):
            await encoder.Encode(EncodeRequest(prompt="wait"), timeout=0.2)
        stream = generator.Generate(GenerateRequest())
        await stream.read()
        assert value("requests_running", entry="Generate") == 1
        stream.cancel()
        while value("requests_running", entry="Generate") or value("requests_running", entry="Encode"):
            await asyncio.sleep(0.01)
        servicer.go_on.set()
        assert len([answer async for answer in generator.Generate(GenerateRequest())]) == 2
    counted = {
        (sample.labels["entry"], sample.labels["outcome"], sample.labels["reason"]): sample.value
        for family in telemetry.metrics.collect()
        for sample in family.samples
        if sample.name == "smalti_requests_total"
    }
    late = {key for key in counted if key[0] == "Encode" and key[1] in ("expired", "cancelled")}
    assert len(late) == 1  # By whichever of the two deadlines, the server's or the client's, struck first.
    assert counted == {
        ("Encode", "done", ""): 1,
        ("Encode", "failed", "invalid_argument"): 1,
        ("Encode", "refused", "resource_exhausted"): 1,
        ("Encode", "failed", "internal"): 1,
        late.pop(): 1,
        ("Generate", "cancelled", "cancelled"): 1,
        ("Generate", "done", ""): 1,
    }
    assert value("request_seconds_count", entry="Generate", outcome="done") == 1
    telemetry.close()


def test_calls_of_the_store_are_timed_by_how_they_end(tmp_path: Path) -> None:
    telemetry = Telemetry(Metrics("ranker"), None, None)
    store = telemetry.store(LocalStore(tmp_path / "store"))
    assert isinstance(store, TimedStore)
    key = JobKeys("j1").scores(0)
    store.check()
    ref = store.put(key, b"content", content_type="text/plain")
    assert store.get(key, sha256=ref.sha256) == b"content"
    assert (store.stat(key), store.stat("jobs/none")) != (None, None)
    assert [info.key for info in store.objects("jobs/")] == [key]
    assert store.presigned_url(key, seconds=1).startswith("file:///")
    assert store.expire_after(1) is False
    with pytest.raises(DamagedObjectError):
        store.get(key, sha256="0" * 64)
    store.delete(key)
    with pytest.raises(MissingObjectError):
        store.get(key)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailableError):
        telemetry.store(LocalStore(tmp_path / "file")).put(key, b"")
    value = read(telemetry.metrics)
    for op, outcome, count in (
        *(("put", "done", 1), ("get", "done", 1), ("get", "damaged", 1), ("get", "missing", 1)),
        *(("stat", "done", 2), ("delete", "done", 1), ("put", "unavailable", 1)),
    ):
        assert value("object_store_seconds_count", op=op, outcome=outcome) == count, (op, outcome)


def test_engine_tells_of_its_steps_and_of_what_was_compiled(pipeline: Pipeline) -> None:
    engine = pipeline.generator
    prompt = pipeline.encoder.unconditional
    candidates = [Candidate(1, index, SamplingParameters()) for index in range(3)]
    engine.generate(prompt, candidates)  # What is not compiled yet is now.
    telemetry = Telemetry(Metrics("generator"), None, None)
    telemetry.watch_engine(engine)
    engine.observer = telemetry.engine_observer
    tokens = engine.generate(prompt, candidates)
    engine.observer = None
    value = read(telemetry.metrics)
    quanta = -(-tokens.shape[1] // engine.batch.quantum)
    assert value("tokens_generated_total") == tokens.size
    assert value("engine_step_seconds_count") == quanta
    assert value("batch_occupancy_sum") == pytest.approx(quanta * 3 / engine.slots)
    assert value("engine_compilations_total") == 0
    assert (value("slots_total"), value("slots_active"), value("requests_waiting")) == (engine.slots, 0, 0)
    import jax

    jax.jit(lambda x: x * 3)(4.0).block_until_ready()
    assert value("engine_compilations_total") > 0
    telemetry.close()


def test_counting_is_right_however_many_threads_count(telemetry: Telemetry) -> None:
    def count() -> None:
        for _ in range(1000):
            telemetry.metrics.add("cancelled_total", where="encode")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(telemetry.metrics)("cancelled_total", where="encode") == 4000
