"""What the gateway's gauges read: from the database, each time somebody asks."""

from collections.abc import Callable, Mapping

from sqlalchemy import func, select

from smalti.services.gateway.database.clock import to_microseconds, to_seconds
from smalti.services.gateway.database.tables import IS_LEASED, IS_OPEN, IS_WAITING, OPEN, Chunk, Job
from smalti.services.gateway.gateway import Gateway
from smalti.telemetry import GaugeValue


def gauges(gateway: Gateway) -> Mapping[str, Callable[[], GaugeValue]]:
    """Returns how each gauge is read, by its name."""
    database = gateway.database

    def jobs_open() -> GaugeValue:
        with database.read() as session:
            counts = session.execute(select(Job.state, func.count()).where(IS_OPEN).group_by(Job.state))
            found = {state: float(count) for state, count in counts}
        return {state.value: found.get(state, 0.0) for state in OPEN}

    def requests_waiting() -> GaugeValue:
        with database.read() as session:
            waiting = select(func.count(func.distinct(Chunk.job_id))).where(IS_WAITING)
            return float(session.scalar(waiting) or 0)

    def candidates_dispatched() -> GaugeValue:
        with database.read() as session:
            return float(session.scalar(select(func.sum(Chunk.count)).where(IS_LEASED)) or 0)

    def outbox_age_seconds() -> GaugeValue:
        """Of what waits its turn, or for the broker."""
        now = to_microseconds(gateway.clock())
        with database.read() as session:
            oldest = session.scalar(select(func.min(Chunk.created)).where(IS_WAITING))
        return max(0.0, to_seconds(now - oldest)) if oldest is not None else 0.0

    return {
        "jobs_open": jobs_open,
        "requests_waiting": requests_waiting,
        "candidates_dispatched": candidates_dispatched,
        "outbox_age_seconds": outbox_age_seconds,
    }
