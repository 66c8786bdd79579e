"""What a process tells of itself: metrics for Prometheus, traces by OpenTelemetry, a log with the job in every line."""

from smalti.telemetry.metrics import Metrics
from smalti.telemetry.process import QUEUE, Telemetry, start
from smalti.telemetry.settings import LogSettings, MetricsSettings

__all__ = ["QUEUE", "LogSettings", "Metrics", "MetricsSettings", "Telemetry", "start"]
