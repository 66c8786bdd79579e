"""Metrics of batches."""

from prometheus_client import generate_latest

from harness.batches import BatchHarness
from smalti.messages import FailureReason
from smalti.services.gateway.metrics import BatchMetrics, gauges
from smalti.telemetry import Metrics


def test_batches_are_counted(batches: BatchHarness) -> None:
    metrics = Metrics("gateway")
    BatchMetrics(metrics, batches.room.signals)
    read = gauges(batches.gateway.gateway.context)
    batch = batches.create(10)
    batches.gateway.clock.advance(7)
    assert read["batches_open"]() == {"planning": 1.0, "running": 0.0, "paused": 0.0, "finishing": 0.0}
    assert read["batch_age_seconds"]() == 7.0
    batches.room.plan()
    first, *_ = batches.send()
    assert read["batch_shards"]() == {"waiting": 0.0, "sent": 3.0}
    batches.handle(first.failed(FailureReason.POISON, "it broke"))
    assert read["batch_shards"]() == {"waiting": 1.0, "sent": 2.0}
    batches.gateway.clock.advance(600 * 16)
    batches.greet()
    batches.run()
    assert batches.state(batch) == "succeeded"
    assert read["batch_shards"]() == {"waiting": 0.0, "sent": 0.0}
    assert read["batch_age_seconds"]() == 0.0
    text = generate_latest(metrics.registry()).decode()
    for line in (
        'smalti_batches_total{model="",outcome="succeeded",reason="",service="gateway"} 1.0',
        'smalti_batch_shards_total{model="",outcome="halved",service="gateway"} 1.0',
        'smalti_batch_shards_total{model="",outcome="done",service="gateway"} 4.0',
        'smalti_batch_prompts_total{model="",outcome="drawn",service="gateway"} 10.0',
        'smalti_batch_rows_planned_total{model="",service="gateway"} 10.0',
    ):
        assert line in text, text
