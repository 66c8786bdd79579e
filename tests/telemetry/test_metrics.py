"""The definitions of metrics, and how they are counted and served."""

import re
import threading
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from harness.paths import DOCS
from harness.telemetry import sample_reader
from smalti.errors import InvalidInputError
from smalti.telemetry import Metrics, MetricsSettings, serve_metrics
from smalti.telemetry.metrics import ALL, DEFINITIONS, QUEUED, SECONDS, STAGES, MetricKind

DOCUMENT = DOCS / "metrics.md"


@pytest.fixture
def metrics() -> Metrics:
    """An encoder's metrics."""
    return Metrics("encoder")


def test_every_metric_is_documented() -> None:
    rows = re.findall(
        r"^\| `smalti_(\w+)` \| (\w+) \| (.*?) \| (.*?) \| (.+) \|$", DOCUMENT.read_text(), re.MULTILINE
    )
    services = {ALL: "all", QUEUED: "all but web", STAGES: "all stages"}
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


def test_names_follow_prometheus_and_labels_are_bounded() -> None:
    for each in DEFINITIONS:
        assert each.name.endswith("_total") == (each.kind is MetricKind.COUNTER) or each.name == "slots_total"
        assert (
            each.kind is not MetricKind.HISTOGRAM
            or each.name.endswith("_seconds")
            or each.name == "batch_occupancy"
        )
        assert not {"prompt", "job", "chunk", "request"} & set(each.labels)
    assert {f"{limit:.0e}"[0] for limit in SECONDS} == {"1", "2", "5"}


def test_service_has_only_its_own_metrics(metrics: Metrics) -> None:
    metrics.model = "tiny"
    metrics.add("redeliveries_total", 2)
    assert sample_reader(metrics)("redeliveries_total") == 2
    with pytest.raises(KeyError):
        metrics.add("images_total")
    with pytest.raises(KeyError):
        metrics.watch("jobs_open", lambda: 1)
    with pytest.raises(ValueError, match="not a gauge"):
        metrics.watch("redeliveries_total", lambda: 1)
    with pytest.raises(ValueError, match="must be one of"):
        Metrics("painter")


def test_gauges_are_read_on_demand_and_a_failing_one_hides_no_other(metrics: Metrics) -> None:
    line = ["first"]
    metrics.watch("requests_waiting", lambda: len(line))
    metrics.watch("requests_running", lambda: {"queue": 2})
    metrics.watch("requests_running", lambda: {"queue": 1, "Encode": 4})
    metrics.watch("model_load_seconds", lambda: 1 / 0)
    value = sample_reader(metrics)
    assert value("requests_waiting") == 1
    line.append("second")
    assert value("requests_waiting") == 2
    assert (value("requests_running", entry="queue"), value("requests_running", entry="Encode")) == (3, 4)
    assert value("model_load_seconds") != value("model_load_seconds")  # Not a number.


def test_endpoint_takes_a_free_port_and_names_one_that_is_taken() -> None:
    metrics = Metrics("encoder")
    endpoint = serve_metrics(metrics, MetricsSettings(port=0))
    assert endpoint is not None
    metrics.observe("stage_seconds", 0.3, stage="encode")
    with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/metrics") as answer:
        families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    assert "process_resident_memory_bytes" in families
    counts = {
        sample.labels["le"]: sample.value
        for sample in families["smalti_stage_seconds"].samples
        if sample.name.endswith("_bucket")
    }
    assert (counts["0.2"], counts["0.5"]) == (0, 1)
    with pytest.raises(InvalidInputError, match=r"^SMALTI_METRICS_PORT: cannot listen on 127.0.0.1:\d+: "):
        serve_metrics(metrics, MetricsSettings(port=endpoint.port))
    with pytest.raises(
        InvalidInputError, match=r"^SMALTI_METRICS_HOST: nowhere.invalid is no address of this machine"
    ):
        serve_metrics(metrics, MetricsSettings(port=1, host="nowhere.invalid"))
    endpoint.close()
    assert serve_metrics(metrics, MetricsSettings()) is None


def test_counting_is_thread_safe(metrics: Metrics) -> None:
    def count() -> None:
        for _ in range(1000):
            metrics.add("cancelled_total", where="encode")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sample_reader(metrics)("cancelled_total", where="encode") == 4000
