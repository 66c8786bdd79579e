"""The metrics of a process: what each is, and the registry that holds those that a service has.

Counters and histograms count what has happened; gauges ask, each time they are read, whoever knows. Labels are few, and
none has a prompt, a job or anything else that there is no end of.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

logger = logging.getLogger(__name__)

PREFIX: Final = "smalti_"

SECONDS: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0),
)
"""The limits of the buckets of times: 1, 2 and 5 of every power of ten, from 1 ms to 1000 s."""
SHARES: Final = tuple(step / 10 for step in range(1, 11))
"""The limits of the buckets of shares."""

GENERATOR, GATEWAY, DECODER, ENCODER, RANKER = "generator", "gateway", "decoder", "encoder", "ranker"
STAGES: Final = (ENCODER, GENERATOR, DECODER, RANKER)
COMPILED: Final = (ENCODER, GENERATOR, DECODER)
ALL: Final = (*STAGES, GATEWAY)


class MetricKind(StrEnum):
    """The kinds of metrics, as Prometheus names them."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Definition:
    """One metric."""

    name: str
    """Without the prefix."""
    kind: MetricKind
    meaning: str
    services: tuple[str, ...] = ALL
    """Those that have it."""
    labels: tuple[str, ...] = ()
    """Besides `service` and `model`, which every metric has."""
    buckets: tuple[float, ...] = SECONDS


def _counter(
    name: str, meaning: str, services: tuple[str, ...] = ALL, labels: tuple[str, ...] = ()
) -> Definition:
    return Definition(name, MetricKind.COUNTER, meaning, services, labels)


def _gauge(
    name: str, meaning: str, services: tuple[str, ...] = ALL, labels: tuple[str, ...] = ()
) -> Definition:
    return Definition(name, MetricKind.GAUGE, meaning, services, labels)


def _histogram(
    name: str,
    meaning: str,
    services: tuple[str, ...] = ALL,
    labels: tuple[str, ...] = (),
    buckets: tuple[float, ...] = SECONDS,
) -> Definition:
    return Definition(name, MetricKind.HISTOGRAM, meaning, services, labels, buckets)


DEFINITIONS: Final = (
    _counter(
        "requests_total",
        "requests that have ended; `entry` is `queue` or the method that was called",
        labels=("entry", "outcome", "reason"),
    ),
    _gauge("requests_running", "requests that are being answered", labels=("entry",)),
    _gauge("requests_waiting", "work that waits for the engine (a generator's candidates); jobs that wait to be sent"),
    _histogram("request_queue_seconds", "from the sending of a message to the beginning of its work"),
    _histogram(
        "request_seconds",
        "from the beginning of a request to its end; what follows from a message is sent then",
        labels=("entry", "outcome"),
    ),
    _histogram("stage_seconds", "what the engine took for the work of one message", labels=("stage",)),
    _gauge("slots_total", "how many pieces of work the engine does at a time", STAGES),
    _gauge("slots_active", "how many it does now", STAGES),
    _histogram("engine_step_seconds", "what one quantum of the engine took", (GENERATOR,)),
    _histogram("batch_occupancy", "the share of the slots in use, for each quantum", (GENERATOR,), buckets=SHARES),
    _counter("tokens_generated_total", "image tokens that were drawn", (GENERATOR,)),
    _counter("images_total", "pictures that were decoded", (DECODER,)),
    _counter(
        "engine_compilations_total", "programs that were compiled, or read from the cache; flat after warm-up", COMPILED
    ),
    _gauge("model_load_seconds", "what loading the model and warming up took", STAGES),
    _gauge("ready", "1 when work is taken, else 0"),
    _histogram("object_store_seconds", "what calls of the object store took", labels=("op", "outcome")),
    _counter("redeliveries_total", "messages that the broker has delivered again"),
    _counter("dead_lettered_total", "messages that went to a dead-letter queue"),
    _counter("duplicates_suppressed_total", "deliveries of work that was running, or done, already"),
    _counter("cancelled_total", "work that was taken back; `where` it was then", labels=("where",)),
    _counter("jobs_total", "jobs that have ended", (GATEWAY,), ("outcome", "reason")),
    _histogram("job_seconds", "from the acceptance of a job to its end", (GATEWAY,), ("outcome",)),
    _gauge("jobs_open", "jobs that have not ended, by their state", (GATEWAY,), ("state",)),
    _gauge("candidates_dispatched", "candidates that were sent and are not finished", (GATEWAY,)),
    _gauge("outbox_age_seconds", "for how long the oldest message that is to be sent waits", (GATEWAY,)),
    _counter("lease_losses_total", "work that was sent again since nothing was heard of it", (GATEWAY,)),
    _histogram("database_seconds", "what transactions of the database took", (GATEWAY,), ("op",)),
)  # fmt: skip

GaugeValue = float | Mapping[str, float]
"""What a gauge shows: a number, or one for each value of its label."""


class Metrics:
    """The metrics of one service, in a registry of their own."""

    def __init__(self, service: str) -> None:
        """Makes those that the service has.

        Raises:
            ValueError: there is no such service.
        """
        if service not in ALL:
            raise ValueError(f"{service!r} is none of {', '.join(ALL)}")
        self.service = service
        self.model = ""
        """The name of the model, once it is known."""
        disable_created_metrics()
        self.definitions = {each.name: each for each in DEFINITIONS if service in each.services}
        self._inner = CollectorRegistry(auto_describe=True)
        self._series: dict[str, Any] = {}
        for each in self.definitions.values():
            name = PREFIX + each.name
            if each.kind is MetricKind.COUNTER:
                self._series[each.name] = Counter(name, each.meaning, each.labels, registry=self._inner)
            elif each.kind is MetricKind.HISTOGRAM:
                self._series[each.name] = Histogram(
                    name, each.meaning, each.labels, registry=self._inner, buckets=each.buckets
                )
        self._lock = threading.Lock()
        self._gauges: dict[str, list[Callable[[], GaugeValue]]] = {}

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Counts on; `name` is without the prefix."""
        self._labelled(name, labels).inc(amount)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Adds a value to a histogram."""
        self._labelled(name, labels).observe(value)

    def watch(self, name: str, read: Callable[[], GaugeValue]) -> None:
        """Lets a gauge ask, whenever it is read; what several say is added up.

        Args:
            name: the gauge's, without the prefix.
            read: returns the number, or one for each value of the gauge's label; called by threads of the endpoint.
        """
        if self.definitions[name].kind is not MetricKind.GAUGE:
            raise ValueError(f"{name} is no gauge")
        with self._lock:
            self._gauges.setdefault(name, []).append(read)

    def registry(self) -> CollectorRegistry:
        """Returns a registry with all of it, for an endpoint."""
        from prometheus_client import GCCollector, PlatformCollector, ProcessCollector

        registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        registry.register(_Collected(self))
        return registry

    def collect(self) -> Iterator[Metric]:
        """Yields what there is, each sample with the labels that all have."""
        own = {"service": self.service, "model": self.model}
        for family in (*self._inner.collect(), *self._read_gauges()):
            family.samples = [each._replace(labels={**own, **each.labels}) for each in family.samples]
            yield family

    def _labelled(self, name: str, labels: dict[str, str]) -> Any:
        series = self._series[name]
        return series.labels(**labels) if labels else series

    def _read_gauges(self) -> Iterator[Metric]:
        with self._lock:
            gauges = {name: list(readers) for name, readers in self._gauges.items()}
        for name, readers in gauges.items():
            definition = self.definitions[name]
            family = GaugeMetricFamily(PREFIX + name, definition.meaning)
            totals: dict[str, float] = {}
            for read in readers:
                for value, number in _readings(name, read).items():
                    totals[value] = totals.get(value, 0.0) + number
            for value, number in totals.items():
                labels = {definition.labels[0]: value} if definition.labels else {}
                family.samples.append(Sample(family.name, labels, number))
            yield family


class _Collected(Collector):
    """What the registry asks."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return self._metrics.collect()


def _readings(name: str, read: Callable[[], GaugeValue]) -> Mapping[str, float]:
    """Asks, and shows no number where that fails: the others are wanted all the more then."""
    try:
        reading = read()
    except Exception:
        logger.warning("%s%s cannot be read", PREFIX, name, exc_info=True)
        reading = math.nan
    return reading if isinstance(reading, Mapping) else {"": float(reading)}
