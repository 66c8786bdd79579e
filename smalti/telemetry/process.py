"""Everything that a process tells of itself, in one object: metrics, traces, logs."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import start_http_server

from smalti.errors import InvalidInputError
from smalti.messages import FailureReason, StageDone
from smalti.settings import read_settings
from smalti.storage import ObjectStore
from smalti.telemetry import logs, tracing
from smalti.telemetry.engine import CompilationCounter, EngineMetrics
from smalti.telemetry.metrics import Metrics, Reading
from smalti.telemetry.settings import METRICS_PREFIX, LogSettings, MetricsSettings
from smalti.telemetry.store import TimedStore

if TYPE_CHECKING:
    import grpc

    from smalti.queue import HandledDelivery
    from smalti.service.process import Engine

logger = logging.getLogger(__name__)

QUEUE = "queue"
"""The entry of requests that come from the queue."""


@dataclass(frozen=True)
class Endpoint:
    """What answers `/metrics`."""

    server: WSGIServer
    thread: threading.Thread

    def close(self) -> None:
        """Answers no more."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Telemetry:
    """What one process tells of itself; `start` makes it."""

    def __init__(self, metrics: Metrics, tracer: tracing.Tracing | None, endpoint: Endpoint | None) -> None:
        """Is made by `start`."""
        self.metrics = metrics
        self._tracer = tracer
        self._endpoint = endpoint
        self._compilations = (
            CompilationCounter(metrics) if "engine_compilations_total" in metrics.definitions else None
        )

    @property
    def metrics_port(self) -> int | None:
        """The port at which `/metrics` is answered; None where it is not."""
        return self._endpoint.server.server_port if self._endpoint else None

    @cached_property
    def interceptors(self) -> "Sequence[grpc.aio.ServerInterceptor]":
        """For `smalti.rpc.server.serve`."""
        from smalti.telemetry.calls import CallObserver

        return (CallObserver(self.metrics),)

    @cached_property
    def client_interceptors(self) -> "Sequence[grpc.aio.ClientInterceptor]":
        """For `smalti.rpc.channel.channel`."""
        from smalti.telemetry.calls import client_interceptors

        return client_interceptors()

    @cached_property
    def engine_observer(self) -> EngineMetrics:
        """For a `GeneratorEngine`."""
        return EngineMetrics(self.metrics)

    def store(self, store: ObjectStore) -> ObjectStore:
        """Returns the store with its calls timed."""
        return TimedStore(store, self.metrics)

    def loaded(self, model: str, seconds: float) -> None:
        """Notes the model that is served, and how long its service took to load it and to warm up."""
        self.metrics.model = model
        if "model_load_seconds" in self.metrics.definitions:
            self.watch("model_load_seconds", lambda: seconds)

    def watch(self, name: str, read: Callable[[], Reading]) -> None:
        """Lets a gauge ask; see `Metrics.watch`."""
        self.metrics.watch(name, read)

    def watch_engine(self, engine: "Engine") -> None:
        """Lets the gauges of the engine ask it how busy it is."""
        self.watch("slots_total", lambda: engine.slots)
        self.watch("slots_active", lambda: engine.active)
        self.watch("requests_waiting", lambda: engine.waiting)

    def observer(self, handled: "HandledDelivery") -> None:
        """Counts what became of a message; for `smalti.queue.consume`."""
        metrics, message, completion = self.metrics, handled.message, handled.completion
        outcome = completion.outcome.value
        reason = completion.reason.value if completion.reason else ""
        metrics.add("requests_total", entry=QUEUE, outcome=outcome, reason=reason)
        metrics.observe("request_seconds", handled.seconds, entry=QUEUE, outcome=outcome)
        if handled.waited is not None:
            metrics.observe("request_queue_seconds", handled.waited)
        if outcome == "redelivered":
            metrics.add("redeliveries_total")
        elif outcome == "dead":
            metrics.add("dead_lettered_total")
        elif outcome == "duplicate":
            metrics.add("duplicates_suppressed_total")
        if completion.reason is FailureReason.CANCELLED and message is not None:
            metrics.add("cancelled_total", where=message.stage_queue.value)
        done = completion.done or (message if isinstance(message, StageDone) else None)
        if done is not None and outcome == "done":
            self._done(done)

    def close(self) -> None:
        """Sends what is left, and answers no more."""
        if self._compilations:
            self._compilations.close()
        if self._endpoint:
            self._endpoint.close()
            self._endpoint = None
        if self._tracer:
            self._tracer.close()
            self._tracer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _done(self, done: StageDone) -> None:
        """Counts the work of a stage."""
        if done.skipped:
            self.metrics.add("duplicates_suppressed_total")
            return
        self.metrics.observe("stage_seconds", done.seconds, stage=done.stage.value)
        if "images_total" in self.metrics.definitions:
            self.metrics.add("images_total", len(done.objects))


def start(
    service: str,
    *,
    model: str = "",
    log_settings: LogSettings | None = None,
    metrics_settings: MetricsSettings | None = None,
) -> Telemetry:
    """Sets up the log, the traces and the metrics of this process, before anything else is done in it.

    Args:
        service: `encoder`, `generator`, `decoder`, `ranker` or `gateway`.
        model: the name of its model; where it is not known yet, `Telemetry.metrics.model` is set later.
        log_settings: None reads them from the environment.
        metrics_settings: None reads them from the environment.

    Raises:
        InvalidInputError: a setting cannot be used; names the variable.
    """
    logs.set_up(service, log_settings)
    metrics = Metrics(service)
    metrics.model = model
    tracer = tracing.start(service)
    return Telemetry(metrics, tracer, serve_metrics(metrics, metrics_settings))


def serve_metrics(metrics: Metrics, settings: MetricsSettings | None = None) -> Endpoint | None:
    """Answers `/metrics` in a thread, where a port is set; otherwise returns None.

    Args:
        metrics: what is answered.
        settings: None reads them from the environment.

    Raises:
        InvalidInputError: it cannot listen there.
    """
    settings = settings or read_settings(MetricsSettings)
    if settings.port is None:
        return None
    try:
        server, thread = start_http_server(settings.port, settings.host, metrics.registry())
    except OSError as error:
        raise InvalidInputError(
            f"{METRICS_PREFIX}PORT",
            f"cannot listen at {settings.host}:{settings.port}: {error.strerror or error}",
        ) from None
    logger.info("metrics are at http://%s:%d/metrics", settings.host, server.server_port)
    return Endpoint(server, thread)
