"""Tenants and what they have: admission of a job by one row update, and counters that follow the jobs.

A job is admitted by the statement that stores it. It raises the counters of its tenant if the limits allow it, so the
row of the tenant is what concurrent requests wait for, and only while that statement runs. What lowers the counters
(the end of a job, its removal) is counted when its transaction commits; see `Database.write`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    ColumnElement,
    FromClause,
    Select,
    String,
    TableValuedAlias,
    Update,
    bindparam,
    case,
    func,
    insert,
    inspect,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

from smalti.errors import InvalidInputError
from smalti.services.gateway.database.commit import count_at_commit
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import IS_OPEN, Chunk, Job, Label, Tenant

log = logging.getLogger(__name__)

COUNTERS: Final = ("open_jobs", "open_batch_jobs", "stored_jobs", "stored_bytes")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What all tenants may have together, and each that has no limits of its own."""

    open_jobs: int
    stored_jobs: int
    stored_bytes: int


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a tenant has, what it may have, and what all tenants have."""

    open_jobs: int
    max_open_jobs: int
    stored_jobs: int
    max_stored_jobs: int
    stored_bytes: int
    max_stored_bytes: int
    all_open_jobs: int
    all_stored_jobs: int
    all_stored_bytes: int


@dataclass(frozen=True, kw_only=True)
class Admission:
    """A job that was admitted and stored."""

    others: int
    """Other open jobs of all tenants."""
    others_batch: int
    """Those of them that are not interactive."""


_JOBS: Final = Job.__table__
_MANY: Final = 2**62
_OF_CHUNK: Final = ("number", "first", "count")
"""In what the new chunks of a job differ."""


def _least(limit: int | None, of_all: int) -> int:
    return of_all if limit is None else min(limit, of_all)


def _columns(job: Job) -> dict[str, Any]:
    """Returns the row of a job, by the names of the columns."""
    return {name: getattr(job, attribute) for name, attribute in _ATTRIBUTES.items()}


_LATER: Final = frozenset(
    {
        *("started", "ended", "delete_at", "asked_until", "prompt_reading", "encodings", "error"),
        *("trouble", "set_aside_until", "set_aside_by"),
    }
)
"""Attributes that a new job does not have. Without them the statement is short enough for the driver's cache."""
_ATTRIBUTES: Final = {
    attribute.columns[0].name: attribute.key
    for attribute in inspect(Job).column_attrs
    if attribute.key not in _LATER
}


def _labels(job: Job) -> list[dict[str, str]]:
    return [{"job_id": job.id, "key": key, "value": value} for key, value in job.labels.items()]


def _others(name: str) -> ColumnElement[int]:
    """Returns the sum of a counter over all other tenants."""
    return select(_OTHERS.c[name]).scalar_subquery()


_ZERO, _ONE = literal_column("0", BigInteger), literal_column("1", BigInteger)
_other = Tenant.__table__.alias("other")
_OTHERS: Final = (
    select(*(func.coalesce(func.sum(_other.c[name]), _ZERO).label(name) for name in COUNTERS))
    .where(_other.c.id != bindparam("of_tenant", type_=String))
    .cte("others")
)


@cache
def _admission() -> Update:
    """Returns the statement that admits a job: it finds the row of the tenant, or none.

    A request that has waited for another one's compares with the row as it is then, so the limits of a tenant are
    exact. Those of all tenants together may be exceeded by as many jobs as other tenants are given meanwhile.
    """
    batch = bindparam("batch", type_=BigInteger)
    is_within = []
    for name in ("open_jobs", "stored_jobs", "stored_bytes"):
        counter, own = getattr(Tenant, name), getattr(Tenant, f"max_{name}")
        limit = bindparam(f"limit_{name}", type_=BigInteger)
        is_within += [counter < func.coalesce(own, limit), counter + _others(name) < limit]
    all_open = Tenant.open_jobs + _others("open_jobs")
    return (
        update(Tenant)
        .where(
            Tenant.id == bindparam("of_tenant", type_=String),
            *is_within,
            all_open.between(bindparam("least", type_=BigInteger), bindparam("most", type_=BigInteger)),
        )
        .values(
            open_jobs=Tenant.open_jobs + _ONE,
            open_batch_jobs=Tenant.open_batch_jobs + batch,
            stored_jobs=Tenant.stored_jobs + _ONE,
            stored_bytes=Tenant.stored_bytes + bindparam("bytes", type_=BigInteger),
        )
        .returning(
            (all_open - _ONE).label("others"),
            (Tenant.open_batch_jobs + _others("open_batch_jobs") - batch).label("others_batch"),
        )
        .execution_options(synchronize_session=False)
    )


@cache
def _admission_and_rows(of_chunk: tuple[str, ...]) -> Select[Any]:
    """Returns the statement of PostgreSQL that admits a job and stores all its rows.

    Args:
        of_chunk: the columns of its chunks.
    """
    admitted = _admission().cte("admitted")

    def rows(table: Any, values: Mapping[str, ColumnElement[Any]], lists: FromClause | None = None) -> CTE:
        chosen = select(*values.values()).select_from(
            admitted if lists is None else admitted.join(lists, true())
        )
        return insert(table).from_select(list(values), chosen).cte(f"new_{table.name}")

    def each(name: str, **columns: TypeEngine[Any]) -> TableValuedAlias:
        """Returns a row for each of the elements of several lists of the same length."""
        lists = (bindparam(f"{name}_{column}", type_=ARRAY(kind)) for column, kind in columns.items())
        return func.unnest(*lists).table_valued(*columns, name=name).render_derived()

    of_job = {name: bindparam(f"job_{name}", type_=_JOBS.c[name].type) for name in _ATTRIBUTES}
    chunks, labels = Chunk.__table__, Label.__table__
    chunk = each("chunks", **{name: chunks.c[name].type for name in _OF_CHUNK})
    names = {getattr(Chunk, name).expression.name: name for name in of_chunk}
    of_chunks = {
        column: chunk.c[name]
        if name in _OF_CHUNK
        else bindparam(f"chunk_{name}", type_=chunks.c[column].type)
        for column, name in names.items()
    }
    label = each("label", keys=String(), values=String())
    of_labels = {"job_id": of_job["id"], "key": label.c["keys"], "value": label.c["values"]}
    return select(admitted.c.others, admitted.c.others_batch).add_cte(
        rows(_JOBS, of_job), rows(chunks, of_chunks, chunk), rows(labels, of_labels, label)
    )


_USAGE: Final = select(
    Tenant,
    *(
        (getattr(Tenant, name) + _others(name)).label(f"all_{name}")
        for name in ("open_jobs", "stored_jobs", "stored_bytes")
    ),
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


def admit(
    database: Database,
    job: Job,
    chunks: Sequence[Mapping[str, Any]],
    limits: Limits,
    *,
    idle: bool | None = None,
) -> Admission | None:
    """Stores a job with its chunks and labels if the limits allow it; returns None if nothing was stored.

    On PostgreSQL it is one statement, so it costs one round trip, and the row of the tenant is locked for no longer.

    Args:
        database: the database.
        job: the new job.
        chunks: the rows of its chunks; they differ in `number`, `first` and `count`.
        limits: what tenants may have.
        idle: admit it only if there are no other open jobs, or only if there are some; None ignores that.

    Raises:
        IntegrityError: the tenant has a job with this request_id.
    """
    values = {f"job_{name}": value for name, value in _columns(job).items()}
    values |= {
        "of_tenant": job.tenant,
        "batch": int(job.priority > 0),
        "bytes": job.size or 0,
        "least": 1 if idle is False else -_MANY,
        "most": 0 if idle else _MANY,
        **{f"limit_{name}": getattr(limits, name) for name in ("open_jobs", "stored_jobs", "stored_bytes")},
    }
    if database.is_sqlite:
        with database.write() as session:
            row = session.execute(_admission(), values).one_or_none()
            if row is not None:
                session.execute(insert(_JOBS), _columns(job))
                session.execute(insert(Chunk), [dict(chunk) for chunk in chunks])
                if job.labels:
                    session.execute(insert(Label), _labels(job))
    else:
        first = chunks[0]
        values |= {f"chunk_{name}": first[name] for name in first if name not in _OF_CHUNK}
        values |= {f"chunks_{name}": [chunk[name] for chunk in chunks] for name in _OF_CHUNK}
        values |= {"label_keys": list(job.labels), "label_values": list(job.labels.values())}
        row = database.execute(_admission_and_rows(tuple(first)), values)
    return Admission(others=int(row[0]), others_batch=int(row[1])) if row is not None else None


def usage_of(session: Session, tenant: str, limits: Limits) -> Usage:
    """Returns what a tenant has; raises `InvalidInputError` if there is no such tenant."""
    found = session.execute(_USAGE, {"of_tenant": tenant}).one_or_none()
    if found is None:
        raise InvalidInputError("tenant", f"is not known: {tenant!r}; create it first")
    row, *all_tenants = found
    return Usage(
        open_jobs=row.open_jobs,
        stored_jobs=row.stored_jobs,
        stored_bytes=row.stored_bytes,
        max_open_jobs=_least(row.max_open_jobs, limits.open_jobs),
        max_stored_jobs=_least(row.max_stored_jobs, limits.stored_jobs),
        max_stored_bytes=_least(row.max_stored_bytes, limits.stored_bytes),
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
