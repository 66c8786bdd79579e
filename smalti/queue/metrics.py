"""Metrics of the messages that a service handles."""

from typing import Final

from smalti.messages import FailureReason, StageDone
from smalti.queue.outcomes import HandledDelivery
from smalti.telemetry import Metrics

QUEUE_ENTRY: Final = "queue"
"""The value of the label `entry` for requests that come from the queue."""


class DeliveryMetrics:
    """Counts handled deliveries; an `DeliveryObserver` for `consume`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def __call__(self, handled: HandledDelivery) -> None:
        """Counts a delivery by its outcome."""
        metrics, message, completion = self._metrics, handled.message, handled.completion
        outcome = completion.outcome.value
        reason = completion.reason.value if completion.reason else ""
        metrics.add("requests_total", entry=QUEUE_ENTRY, outcome=outcome, reason=reason)
        metrics.observe("request_seconds", handled.seconds, entry=QUEUE_ENTRY, outcome=outcome)
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
            self._count_stage_work(done)

    def _count_stage_work(self, done: StageDone) -> None:
        if done.skipped:
            self._metrics.add("duplicates_suppressed_total")
            return
        self._metrics.observe("stage_seconds", done.seconds, stage=done.stage.value)
        # The stages of shards, whose objects hold many pictures, count them themselves.
        if "images_total" in self._metrics.definitions and done.chunk is not None:
            self._metrics.add("images_total", len(done.objects))
