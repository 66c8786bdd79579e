"""The metrics, traces and log of a service's process, wired together."""

from collections.abc import Callable, Sequence
from functools import cached_property
from types import TracebackType
from typing import Self

import grpc

from smalti.queue import DeliveryMetrics
from smalti.rpc.observer import CallObserver, client_interceptors
from smalti.service.engine import Engine
from smalti.storage import ObjectStore
from smalti.storage.timed import TimedStore
from smalti.telemetry import (
    Endpoint,
    GaugeValue,
    LogSettings,
    Metrics,
    MetricsSettings,
    logs,
    serve_metrics,
    tracing,
)

COMPILED = "/jax/core/compile/backend_compile_duration"
"""JAX's event for a program that was compiled, or read from JAX's own cache."""


class EngineMetrics:
    """Counts the steps of a `GeneratorEngine`; an `EngineObserver`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def stepped(self, seconds: float, active: int, slots: int, tokens: int) -> None:  # noqa: D102
        self._metrics.observe("engine_step_seconds", seconds)
        self._metrics.observe("batch_occupancy", active / slots)
        self._metrics.add("tokens_generated_total", tokens)


class CompilationCounter:
    """Counts the programs that this process compiles or reads, from its creation to `close`."""

    def __init__(self, metrics: Metrics) -> None:
        import jax

        from smalti.compilation import PROGRAM_READ

        self._metrics = metrics
        self._events = (COMPILED, PROGRAM_READ)
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def close(self) -> None:
        """Stops counting."""
        import jax

        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event in self._events:
            self._metrics.add("engine_compilations_total")


class Telemetry:
    """The telemetry of one process; see `start`."""

    def __init__(
        self, metrics: Metrics, *, tracer: tracing.Tracing | None = None, endpoint: Endpoint | None = None
    ) -> None:
        self.metrics = metrics
        self._tracer = tracer
        self._endpoint = endpoint
        self._compilations = (
            CompilationCounter(metrics) if "engine_compilations_total" in metrics.definitions else None
        )

    @cached_property
    def interceptors(self) -> Sequence[grpc.aio.ServerInterceptor]:
        """The interceptors of the gRPC server."""
        return (CallObserver(self.metrics),)

    @cached_property
    def client_interceptors(self) -> Sequence[grpc.aio.ClientInterceptor]:
        """The interceptors of channels to other services."""
        return client_interceptors()

    @cached_property
    def engine_observer(self) -> EngineMetrics:
        """The observer of a `GeneratorEngine`."""
        return EngineMetrics(self.metrics)

    @cached_property
    def delivery_observer(self) -> DeliveryMetrics:
        """The observer of a `Consumer`."""
        return DeliveryMetrics(self.metrics)

    def store(self, store: ObjectStore) -> ObjectStore:
        """Returns the store with its calls timed."""
        return TimedStore(store, self.metrics)

    def loaded(self, model: str, seconds: float) -> None:
        """Records the name of the model, and how long loading and warming up took."""
        self.metrics.model = model
        if "model_load_seconds" in self.metrics.definitions:
            self.watch("model_load_seconds", lambda: seconds)

    def watch(self, name: str, read: Callable[[], GaugeValue]) -> None:
        """Registers a reader of a gauge; see `Metrics.watch`."""
        self.metrics.watch(name, read)

    def watch_engine(self, engine: Engine) -> None:
        """Registers the gauges of the engine's load."""
        self.watch("slots_total", lambda: engine.slots)
        self.watch("slots_active", lambda: engine.active)
        self.watch("requests_waiting", lambda: engine.waiting)

    def close(self) -> None:
        """Exports the remaining spans, and stops serving metrics."""
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


def start(
    service: str,
    *,
    model: str = "",
    log_settings: LogSettings | None = None,
    metrics_settings: MetricsSettings | None = None,
) -> Telemetry:
    """Sets up the log, the traces and the metrics of this process; to be called first of all.

    Args:
        service: `encoder`, `generator`, `decoder`, `ranker`, `refiner` or `gateway`.
        model: the name of the model; where it is not known yet, set `Telemetry.metrics.model` later.
        log_settings: None reads them from the environment.
        metrics_settings: None reads them from the environment.

    Raises:
        InvalidInputError: a setting is invalid; names the variable.
    """
    logs.set_up(service, log_settings)
    metrics = Metrics(service)
    metrics.model = model
    tracer = tracing.start(service)
    return Telemetry(metrics, tracer=tracer, endpoint=serve_metrics(metrics, metrics_settings))
