"""Tenants: what they have, what they may have, and counters that follow their jobs.

The statement that admits a job raises the counters (`smalti.services.gateway.jobs.admission`). What lowers them, the
end of a job and its removal, is counted when its transaction commits (`smalti.services.gateway.database.commit`).
"""

import logging
from dataclasses import dataclass
from typing import Final, Self

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    String,
    bindparam,
    case,
    delete,
    func,
    literal_column,
    or_,
    select,
)
from sqlalchemy.orm import Session

from smalti.errors import InvalidInputError
from smalti.services.gateway.database.clock import MICROSECONDS
from smalti.services.gateway.database.commit import count_at_commit
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import COUNTERS, IS_OPEN, DailyUsage, Job, Tenant
from smalti.services.gateway.settings import GatewaySettings

log = logging.getLogger(__name__)

LIMITED: Final = ("open_jobs", "stored_jobs", "stored_bytes")
"""Counters that have limits."""
UNLIMITED: Final = 2**40
"""More than anybody has."""
MINUTE: Final = 60 * MICROSECONDS
DAY: Final = 24 * 60 * MINUTE
USAGE_DAYS: Final = 400
"""Days for which it is kept what a tenant has used."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What each tenant may have that has no limits of its own."""

    open_jobs: int
    """The first three are also what all tenants may have together."""
    stored_jobs: int
    stored_bytes: int
    requests: int = UNLIMITED
    """Jobs that it may create in a minute."""
    candidates: int = UNLIMITED
    """Candidates that it may ask for in a day."""
    prompt: int = UNLIMITED
    """Characters of a prompt."""
    retention: int = UNLIMITED
    """Seconds for which a job may be kept; requests are compared with that of the settings when they are read."""

    @classmethod
    def load(cls, settings: GatewaySettings) -> Self:
        """Returns the limits of the settings."""
        return cls(
            open_jobs=settings.open_jobs,
            stored_jobs=settings.stored_jobs,
            stored_bytes=settings.stored_bytes,
            requests=settings.requests_per_minute or UNLIMITED,
            candidates=settings.candidates_per_day or UNLIMITED,
            prompt=settings.prompt_characters or UNLIMITED,
        )


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a tenant has, what it may have, and what all tenants have."""

    tenant: str
    open_jobs: int
    max_open_jobs: int
    stored_jobs: int
    max_stored_jobs: int
    stored_bytes: int
    max_stored_bytes: int
    max_requests: int
    max_candidates: int
    max_prompt: int
    max_retention: int
    requests_until: int
    day: int
    day_candidates: int
    all_open_jobs: int
    all_stored_jobs: int
    all_stored_bytes: int


def day_of(now: int) -> int:
    """Returns the beginning of the day (UTC) of a time; both are in microseconds."""
    return now // DAY * DAY


def own(limit: int | None, default: int) -> int:
    """Returns a limit of a tenant's own; the default if it has none."""
    return default if limit is None else limit


def _least(limit: int | None, of_all: int) -> int:
    return of_all if limit is None else min(limit, of_all)


def others(name: str) -> ColumnElement[int]:
    """Returns the sum of a counter over all other tenants."""
    return select(_OTHERS.c[name]).scalar_subquery()


_other = Tenant.__table__.alias("other")
_OTHERS: Final = (
    select(
        *(
            func.coalesce(func.sum(_other.c[name]), literal_column("0", BigInteger)).label(name)
            for name in COUNTERS
        )
    )
    .where(_other.c.id != bindparam("of_tenant", type_=String))
    .cte("o")
)


_USAGE: Final = select(
    Tenant,
    *((getattr(Tenant, name) + others(name)).label(f"all_{name}") for name in LIMITED),
).where(Tenant.id == bindparam("of_tenant", type_=String))

_open = (
    select(
        Job.tenant,
        func.count().label("open_jobs"),
        func.sum(case((Job.priority > 0, 1), else_=0)).label("open_batch_jobs"),
    )
    .where(IS_OPEN)
    .group_by(Job.tenant)
    .subquery("opened")
)
_stored = (
    select(Job.tenant, func.count().label("stored_jobs"), func.sum(Job.size).label("stored_bytes"))
    .group_by(Job.tenant)
    .subquery("stored")
)
_counted = {
    name: func.coalesce((_open if name in _open.c else _stored).c[name], 0).label(name) for name in COUNTERS
}
_COUNTS: Final = (
    select(Tenant.id, *_counted.values())
    .outerjoin(_open, _open.c.tenant == Tenant.id)
    .outerjoin(_stored, _stored.c.tenant == Tenant.id)
)
"""What the counters of tenants should be."""
_IS_WRONG: Final = or_(*(getattr(Tenant, name) != counted for name, counted in _counted.items()))


def usage_of(session: Session, tenant: str, limits: Limits) -> Usage:
    """Returns what a tenant has; raises `InvalidInputError` if there is no such tenant."""
    found = session.execute(_USAGE, {"of_tenant": tenant}).one_or_none()
    if found is None:
        raise InvalidInputError("tenant", f"is not known: {tenant!r}; create it first")
    row, *all_tenants = found
    return Usage(
        tenant=tenant,
        open_jobs=row.open_jobs,
        stored_jobs=row.stored_jobs,
        stored_bytes=row.stored_bytes,
        max_open_jobs=_least(row.max_open_jobs, limits.open_jobs),
        max_stored_jobs=_least(row.max_stored_jobs, limits.stored_jobs),
        max_stored_bytes=_least(row.max_stored_bytes, limits.stored_bytes),
        max_requests=own(row.max_requests, limits.requests),
        max_candidates=own(row.max_candidates, limits.candidates),
        max_prompt=own(row.max_prompt, limits.prompt),
        max_retention=own(row.max_retention, limits.retention),
        requests_until=row.requests_until,
        day=row.day,
        day_candidates=row.day_candidates,
        all_open_jobs=int(all_tenants[0]),
        all_stored_jobs=int(all_tenants[1]),
        all_stored_bytes=int(all_tenants[2]),
    )


def count_end(session: Session, job: Job) -> None:
    """Counts the end of an open job when the transaction commits."""
    count_at_commit(session, job.tenant, open_jobs=-1, open_batch_jobs=-int(job.priority > 0))


def count_removal(session: Session, job: Job) -> None:
    """Counts the removal of an ended job when the transaction commits."""
    count_at_commit(session, job.tenant, stored_jobs=-1, stored_bytes=-(job.size or 0))


def recount(database: Database) -> int:
    """Corrects counters that are not what the jobs are; returns of how many tenants.

    They drift while a gateway of 0.2.0 or older runs beside this one, which does not count. One statement reads
    counters and jobs as they are at one time, and every transaction changes both, so what differs is wrong.
    """
    with database.read() as session:
        drifted = session.execute(_COUNTS.where(_IS_WRONG)).all()
    for tenant, *_ in drifted:
        with database.write() as session:
            # With the row locked, nobody commits a change of its counters, and the next statement sees all that is.
            row = session.scalars(select(Tenant).where(Tenant.id == tenant).with_for_update()).one_or_none()
            if row is None:
                continue
            counted = session.execute(_COUNTS.where(Tenant.id == tenant)).one()
            before = [getattr(row, name) for name in COUNTERS]
            for name in COUNTERS:
                setattr(row, name, int(getattr(counted, name)))
        log.warning(
            "the counters of tenant %s were %s, and are %s",
            tenant,
            before,
            [int(each) for each in counted[1:]],
        )
    return len(drifted)


def forget_usage(database: Database, now: int) -> int:
    """Removes what tenants have used long ago; returns the number of rows."""
    with database.write() as session:
        old = delete(DailyUsage).where(DailyUsage.day < day_of(now) - USAGE_DAYS * DAY)
        return int(session.execute(old).rowcount)  # type: ignore[attr-defined]
