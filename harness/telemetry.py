"""Reads what a process records: the samples of its metrics, the lines of its log, its exported spans."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import structlog

from harness.collector import Collector, RecordedSpan
from smalti.telemetry import LogSettings, Metrics, audit, tracing
from smalti.telemetry.logs import set_up
from smalti.telemetry.metrics import PREFIX
from smalti.telemetry.settings import LogFormat
from smalti.telemetry.tracing import Tracing

JSON = LogSettings(format=LogFormat.JSON)


def sample_reader(metrics: Metrics) -> Callable[..., float]:
    """Returns a function that reads a sample by its name without the prefix; 0 for a missing one."""

    def value(name: str, **labels: str) -> float:
        own = {"service": metrics.service, "model": metrics.model}
        return metrics.registry().get_sample_value(PREFIX + name, {**own, **labels}) or 0.0

    return value


class Log(io.StringIO):
    """The captured log."""

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines so far, parsed as JSON."""
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def find(self, event: str) -> dict[str, Any]:
        """Returns the one line with this event."""
        found = [line for line in self.lines if line["event"] == event]
        assert len(found) == 1
        return found[0]


@contextmanager
def captured_log(settings: LogSettings = JSON) -> Iterator[Log]:
    """Captures the log of this process in the block, and restores the logging of before afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    levels = {
        name: logger.level
        for name, logger in root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger)
    }
    root.handlers = []
    log = Log()
    set_up("encoder", settings, log)
    try:
        yield log
    finally:
        logging.captureWarnings(False)
        audit.set_up(None, logging.Formatter())
        structlog.reset_defaults()
        root.handlers = handlers
        root.setLevel(level)
        for name in root.manager.loggerDict:
            logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))


@contextmanager
def recording(service: str = "encoder") -> Iterator[tuple[Collector, Tracing]]:
    """Records the spans of this process in the block; they reach the collector when the tracing is closed."""
    with Collector() as collector, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        started = tracing.start(service)
        assert started is not None
        try:
            yield collector, started
        finally:
            started.close()


def only(spans: list[RecordedSpan]) -> RecordedSpan:
    """Returns the one span of a list."""
    assert len(spans) == 1
    return spans[0]
