"""Recording and exporting spans."""

import subprocess
import sys

import pytest

from harness.collector import Collector
from harness.paths import ROOT
from smalti.errors import InvalidInputError
from smalti.telemetry import tracing


def test_missing_collector_delays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector() as gone:
        pass
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", gone.endpoint)
    traced = tracing.start("encoder")
    assert traced is not None
    with tracing.span("lost"):
        pass
    traced.close()
    assert not tracing.is_recording()


def test_unsupported_protocol_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    with pytest.raises(
        InvalidInputError, match=r"^OTEL_EXPORTER_OTLP_PROTOCOL: 'http/protobuf' is not supported"
    ):
        tracing.start("encoder")


def test_sdk_is_not_imported_without_an_endpoint() -> None:
    script = (
        "import sys; from smalti.telemetry import Metrics, logs, serve_metrics, tracing;"
        "logs.set_up('encoder'); tracing.start('encoder'); serve_metrics(Metrics('encoder')).close();"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    environment = {"PATH": "", "SMALTI_METRICS_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
