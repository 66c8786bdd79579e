"""Metrics for Prometheus, traces by OpenTelemetry, and the log of a process."""

from smalti.telemetry.endpoint import Endpoint, serve_metrics
from smalti.telemetry.metrics import GaugeValue, Metrics
from smalti.telemetry.settings import LogSettings, MetricsSettings

__all__ = [
    "Endpoint",
    "GaugeValue",
    "LogSettings",
    "Metrics",
    "MetricsSettings",
    "audit",
    "logs",
    "metrics",
    "serve_metrics",
    "settings",
    "tracing",
]
