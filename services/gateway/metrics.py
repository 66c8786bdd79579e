"""The gateway's metrics: counters of jobs that end, and gauges read from the database."""

from collections.abc import Callable, Mapping
from typing import Final

from sqlalchemy import TextClause, func, select

from smalti.services.gateway.batches import BatchOutcome, BatchSignals
from smalti.services.gateway.database.clock import to_microseconds, to_seconds
from smalti.services.gateway.database.presence import Role
from smalti.services.gateway.database.tables import (
    IS_LEASED,
    IS_LEASED_SHARD,
    IS_OPEN,
    IS_OPEN_BATCH,
    IS_WAITING,
    OPEN_BATCH_STATES,
    OPEN_STATES,
    Batch,
    Chunk,
    FileState,
    GatewayProcess,
    Job,
    JobState,
    Shard,
    StoredFile,
)
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.observer import JobObserver, JobOutcome
from smalti.services.gateway.models import Fleet
from smalti.services.gateway.policy.content_policy import Subject
from smalti.telemetry import GaugeValue, Metrics

MAX_REVISIONS: Final = 20
"""Revisions that have values of their own."""
REVISION_DIGITS: Final = 12
OTHER: Final = "other"
"""All other revisions."""


class JobMetrics(JobObserver):
    """Counts the jobs that end, the leases that are lost, and counters that were wrong."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def rows_began(self, seconds: float) -> None:  # noqa: D102
        self._metrics.observe("job_first_rows_seconds", seconds)

    def ended(self, outcome: JobOutcome) -> None:  # noqa: D102
        state = outcome.state.value
        self._metrics.add("jobs_total", outcome=state, reason=outcome.reason)
        self._metrics.observe("job_seconds", outcome.seconds, outcome=state)
        if outcome.state is JobState.CANCELLED:
            self._metrics.add("cancelled_total", where="running" if outcome.was_running else "waiting")

    def lost(self, chunks: int) -> None:  # noqa: D102
        self._metrics.add("lease_losses_total", chunks)

    def recounted(self, tenants: int) -> None:  # noqa: D102
        self._metrics.add("recounted_total", tenants)

    def policy_answered(self, subject: Subject, by: str, outcome: str, amount: int) -> None:
        """Counts the answers of the operator's policy."""
        self._metrics.add("policy_checks_total", amount, subject=subject.value, by=by, outcome=outcome)


class BatchMetrics:
    """Counts what becomes of batches."""

    def __init__(self, metrics: Metrics, signals: BatchSignals) -> None:
        """Hears of it from now on."""
        self._metrics = metrics
        signals.ended = self._ended
        signals.shards_ended = lambda outcome, number: metrics.add(
            "batch_shards_total", number, outcome=outcome
        )
        signals.prompts_ended = lambda outcome, number: metrics.add(
            "batch_prompts_total", number, outcome=outcome
        )
        signals.rows_planned = lambda rows: metrics.add("batch_rows_planned_total", rows)

    def _ended(self, outcome: BatchOutcome) -> None:
        self._metrics.add("batches_total", outcome=outcome.state.value, reason=outcome.reason)


def _by_revision(fleet: Fleet, values: Mapping[str | None, int]) -> dict[str, float]:
    """Returns values by the name and the first digits of a revision; those of many revisions are added up."""
    found: dict[str, float] = {}
    known = [revision for revision in fleet.by_revision if revision in values][:MAX_REVISIONS]
    for revision, value in values.items():
        label = OTHER
        if revision in known:
            card = fleet.card(revision)
            label = f"{card.name}@{card.revision.removeprefix('sha256:')[:REVISION_DIGITS]}"
        found[label] = found.get(label, 0.0) + value
    return found


def gauges(context: GatewayContext) -> Mapping[str, Callable[[], GaugeValue]]:
    """Returns functions that read the gauges from the database, by name."""
    database = context.database

    def jobs_open() -> GaugeValue:
        with database.read() as session:
            counts = session.execute(select(Job.state, func.count()).where(IS_OPEN).group_by(Job.state))
            found = {state: float(count) for state, count in counts}
        return {state.value: found.get(state, 0.0) for state in OPEN_STATES}

    def jobs_set_aside() -> GaugeValue:
        with database.read() as session:
            query = select(func.count()).select_from(Job).where(Job.set_aside_until.is_not(None))
            return float(session.scalar(query) or 0)

    def requests_waiting() -> GaugeValue:
        with database.read() as session:
            waiting = select(func.count(func.distinct(Chunk.job_id))).where(IS_WAITING)
            return float(session.scalar(waiting) or 0)

    def candidates_dispatched() -> GaugeValue:
        with database.read() as session:
            return float(session.scalar(select(func.sum(Chunk.count)).where(IS_LEASED)) or 0)

    def outbox_age_seconds() -> GaugeValue:
        """Returns the age of the oldest chunk that waits for its turn or for the broker."""
        now = to_microseconds(context.clock())
        with database.read() as session:
            oldest = session.scalar(select(func.min(Chunk.created)).where(IS_WAITING))
        return max(0.0, to_seconds(now - oldest)) if oldest is not None else 0.0

    def files_stored() -> GaugeValue:
        with database.read() as session:
            found = session.execute(select(StoredFile.state, func.count()).group_by(StoredFile.state))
            counts = {state: float(count) for state, count in found}
        return {state.value: counts.get(state, 0.0) for state in FileState}

    def file_bytes_stored() -> GaugeValue:
        with database.read() as session:
            return float(session.scalar(select(func.sum(StoredFile.size))) or 0)

    def gateways() -> GaugeValue:
        if database.is_sqlite:
            return 1.0
        with database.read() as session:
            return float(session.scalar(select(func.count()).select_from(GatewayProcess)) or 0)

    def gateway_roles() -> GaugeValue:
        return {role.label: float(context.holds(role)) for role in Role}

    def revision_slots() -> GaugeValue:
        fleet = context.catalogue.fleet
        return _by_revision(fleet, {state.card.revision: state.slots for state in fleet.available})

    def revision_candidates_waiting() -> GaugeValue:
        return candidates(IS_WAITING)

    def revision_candidates_sent() -> GaugeValue:
        return candidates(IS_LEASED)

    def candidates(which: TextClause) -> GaugeValue:
        query = select(Chunk.revision, func.sum(Chunk.count)).where(which).group_by(Chunk.revision)
        with database.read() as session:
            found = [(revision, int(count)) for revision, count in session.execute(query)]
        fleet = context.catalogue.fleet
        values: dict[str | None, int] = {state.card.revision: 0 for state in fleet.available}
        return _by_revision(fleet, values | dict(found))

    def batches_open() -> GaugeValue:
        query = select(Batch.state, func.count()).where(IS_OPEN_BATCH).group_by(Batch.state)
        with database.read() as session:
            found = {state: float(number) for state, number in session.execute(query)}
        return {state.value: found.get(state, 0.0) for state in OPEN_BATCH_STATES}

    def batch_age_seconds() -> GaugeValue:
        now = to_microseconds(context.clock())
        with database.read() as session:
            oldest = session.scalar(select(func.min(Batch.created)).where(IS_OPEN_BATCH))
        return max(0.0, to_seconds(now - oldest)) if oldest is not None else 0.0

    def batch_shards() -> GaugeValue:
        left = func.sum(Batch.shards - Batch.shards_ended)
        with database.read() as session:
            planned = IS_OPEN_BATCH, Batch.planned.is_not(None)
            open_shards = float(session.scalar(select(left).where(*planned)) or 0)
            sent = float(session.scalar(select(func.count()).select_from(Shard).where(IS_LEASED_SHARD)) or 0)
        # The halves of a shard count as one that is left.
        return {"waiting": max(0.0, open_shards - sent), "sent": sent}

    return {
        "batches_open": batches_open,
        "batch_age_seconds": batch_age_seconds,
        "batch_shards": batch_shards,
        "revision_slots": revision_slots,
        "revision_candidates_waiting": revision_candidates_waiting,
        "revision_candidates_sent": revision_candidates_sent,
        "files_stored": files_stored,
        "file_bytes_stored": file_bytes_stored,
        "gateways": gateways,
        "gateway_roles": gateway_roles,
        "jobs_open": jobs_open,
        "jobs_set_aside": jobs_set_aside,
        "requests_waiting": requests_waiting,
        "candidates_dispatched": candidates_dispatched,
        "outbox_age_seconds": outbox_age_seconds,
    }
