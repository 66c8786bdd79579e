"""The definitions of all metrics, and the registry with those of one service.

Counters and histograms are updated by the code that they observe; gauges call a reader each time they are scraped.
Labels are few and bounded: none contains a prompt or a job.
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
"""The bucket limits of durations: 1, 2 and 5 times each power of ten, from 1 ms to 1000 s."""
SHARES: Final = tuple(step / 10 for step in range(1, 11))
"""The bucket limits of shares."""

GENERATOR, GATEWAY, DECODER, ENCODER = "generator", "gateway", "decoder", "encoder"
RANKER, REFINER, WEB = "ranker", "refiner", "web"
STAGES: Final = (ENCODER, GENERATOR, DECODER, RANKER, REFINER)
COMPILED: Final = (ENCODER, GENERATOR, DECODER)
QUEUED: Final = (*STAGES, GATEWAY)
"""The services that work on messages of queues."""
ALL: Final = (*QUEUED, WEB)


class MetricKind(StrEnum):
    """The kinds of metrics in Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Definition:
    """The definition of a metric."""

    name: str
    """The name without the prefix."""
    kind: MetricKind
    meaning: str
    services: tuple[str, ...] = ALL
    """The services that have the metric."""
    labels: tuple[str, ...] = ()
    """The labels besides `service` and `model`, which every metric has."""
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
        "finished requests; `entry` is `queue`, the called method, or the route",
        labels=("entry", "outcome", "reason"),
    ),
    _gauge("requests_running", "requests in progress", labels=("entry",)),
    _gauge(
        "requests_waiting",
        "work that waits for the engine (of a generator: candidates); of the gateway: jobs that wait to be sent",
        QUEUED,
    ),
    _histogram("request_queue_seconds", "time from sending a message to the start of its work", QUEUED),
    _histogram(
        "request_seconds",
        "duration of a request; for a message until its followers are sent",
        labels=("entry", "outcome"),
    ),
    _histogram("stage_seconds", "engine time for one message", QUEUED, ("stage",)),
    _gauge("slots_total", "capacity of the engine: pieces of work at a time", STAGES),
    _gauge("slots_active", "slots in use", STAGES),
    _histogram("engine_step_seconds", "duration of one dispatch of the engine (several decoding steps)", (GENERATOR,)),
    _histogram("batch_occupancy", "share of the slots in use, per dispatch", (GENERATOR,), buckets=SHARES),
    _counter("tokens_generated_total", "generated image tokens", (GENERATOR,)),
    _counter("images_total", "decoded pictures; of a refiner: refined and enlarged ones", (DECODER, REFINER)),
    _counter("shards_total", "shards of batches whose output was written", (RANKER, REFINER)),
    _counter("shard_prompts_total", "prompts of these shards", (RANKER, REFINER), ("state",)),
    _counter(
        "engine_compilations_total", "programs compiled or read from the cache; constant after warm-up", COMPILED
    ),
    _gauge("model_load_seconds", "time for loading the model and warming up", STAGES),
    _gauge("ready", "1 if the process accepts work, otherwise 0"),
    _histogram("object_store_seconds", "duration of calls to the object store", QUEUED, ("op", "outcome")),
    _counter("redeliveries_total", "redelivered messages", QUEUED),
    _counter("dead_lettered_total", "messages moved to a dead-letter queue", QUEUED),
    _counter("duplicates_suppressed_total", "deliveries of work that was already running or done", QUEUED),
    _counter(
        "cancelled_total",
        "cancelled work; `where` is the stage at which it was cancelled, or `client gone`",
        labels=("where",),
    ),
    _counter("jobs_total", "finished jobs", (GATEWAY,), ("outcome", "reason")),
    _histogram("job_seconds", "time from accepting a job to its end", (GATEWAY,), ("outcome",)),
    _histogram("job_first_rows_seconds", "time from accepting a job to its first stored rows", (GATEWAY,)),
    _gauge("jobs_open", "open jobs by state", (GATEWAY,), ("state",)),
    _gauge("jobs_set_aside", "jobs that a gateway cannot work on, and leaves alone for a while", (GATEWAY,)),
    _gauge("candidates_dispatched", "candidates that were sent and are not finished", (GATEWAY,)),
    _gauge("outbox_age_seconds", "age of the oldest message that waits to be sent", (GATEWAY,)),
    _counter("batches_total", "batches that have ended", (GATEWAY,), ("outcome", "reason")),
    _gauge("batches_open", "batches that have not ended, by state", (GATEWAY,), ("state",)),
    _gauge("batch_age_seconds", "age of the oldest batch that has not ended", (GATEWAY,)),
    _gauge(
        "batch_shards",
        "shards of batches that are `waiting` to be sent, or `sent` and not done",
        (GATEWAY,),
        ("state",),
    ),
    _counter(
        "batch_shards_total",
        "shards that were `done`, `halved`, or `failed` as a single prompt",
        (GATEWAY,),
        ("outcome",),
    ),
    _counter("batch_prompts_total", "prompts of batches that were `drawn` or `failed`", (GATEWAY,), ("outcome",)),
    _counter("batch_rows_planned_total", "rows of inputs of batches that were checked and cut", (GATEWAY,)),
    _gauge("files_stored", "files of clients, and files made for them, by state", (GATEWAY,), ("state",)),
    _gauge("file_bytes_stored", "size of these files in bytes", (GATEWAY,)),
    _gauge("gateways", "gateways that share the database and are alive", (GATEWAY,)),
    _gauge("gateway_roles", "1 if this gateway does what one of them does for all", (GATEWAY,), ("role",)),
    _gauge("revision_slots", "slots of the generators of a revision that have said hello", (GATEWAY,), ("revision",)),
    _gauge("revision_candidates_waiting", "candidates of a revision that wait to be sent", (GATEWAY,), ("revision",)),
    _gauge(
        "revision_candidates_sent",
        "candidates of a revision that were sent and are not finished",
        (GATEWAY,),
        ("revision",),
    ),
    _counter("recounted_total", "corrections of the counters of a tenant, which differed from its jobs", (GATEWAY,)),
    _counter("lease_losses_total", "chunks and shards sent again because their lease expired", (GATEWAY,)),
    _counter(
        "policy_checks_total",
        "prompts and pictures that the operator's policy was asked about; `by` is `list` or `hook`",
        (GATEWAY,),
        ("subject", "by", "outcome"),
    ),
    _histogram("database_seconds", "duration of database transactions", (GATEWAY,), ("op",)),
)  # fmt: skip

GaugeValue = float | Mapping[str, float]
"""The value of a gauge: a number, or a number for each value of its label."""


class Metrics:
    """The metrics of one service, in their own registry; thread-safe."""

    def __init__(self, service: str) -> None:
        """Creates the metrics of the service.

        Raises:
            ValueError: the service is unknown.
        """
        if service not in ALL:
            raise ValueError(f"{service!r} must be one of {', '.join(ALL)}")
        self.service = service
        self.model = ""
        """The name of the model; set once it is known."""
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
        """Increases a counter; `name` is without the prefix."""
        self._labelled(name, labels).inc(amount)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Adds a value to a histogram."""
        self._labelled(name, labels).observe(value)

    def watch(self, name: str, read: Callable[[], GaugeValue]) -> None:
        """Registers a reader of a gauge; the values of several readers are added.

        Args:
            name: the name of the gauge, without the prefix.
            read: returns the value, or a value for each value of the label; called from threads of the endpoint.

        Raises:
            ValueError: the metric is not a gauge.
        """
        if self.definitions[name].kind is not MetricKind.GAUGE:
            raise ValueError(f"{name} is not a gauge")
        with self._lock:
            self._gauges.setdefault(name, []).append(read)

    def registry(self) -> CollectorRegistry:
        """Returns a registry with these metrics and those of the process, for an endpoint."""
        from prometheus_client import GCCollector, PlatformCollector, ProcessCollector

        registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        registry.register(_MetricsCollector(self))
        return registry

    def collect(self) -> Iterator[Metric]:
        """Yields all metrics; `service` and `model` are added to the labels of each sample."""
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


class _MetricsCollector(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return self._metrics.collect()


def _readings(name: str, read: Callable[[], GaugeValue]) -> Mapping[str, float]:
    """Reads a gauge; NaN if that fails, so that the other metrics can still be read."""
    try:
        reading = read()
    except Exception:
        logger.warning("%s%s cannot be read", PREFIX, name, exc_info=True)
        reading = math.nan
    return reading if isinstance(reading, Mapping) else {"": float(reading)}
