"""Admission of jobs: one update of the tenant's row decides, in the transaction that stores the jobs.

On PostgreSQL that is one statement. So it costs one round trip, and the row of the tenant, for which other gateways
wait, is locked for no longer than the database needs to write the jobs to disk. Jobs that come while the statement of
others is on its way are admitted together by the next one.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    CTE,
    JSON,
    BigInteger,
    BindParameter,
    ColumnElement,
    Select,
    String,
    Table,
    Text,
    Update,
    bindparam,
    case,
    cast,
    func,
    insert,
    inspect,
    literal_column,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapper

from smalti.services.gateway.database.clock import MICROSECONDS
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import Chunk, DailyUsage, Job, Label, Tenant
from smalti.services.gateway.jobs.tenants import LIMITED, MINUTE, Limits, day_of, others

MAX_TOGETHER: Final = 32
"""Maximum number of jobs that are admitted together."""
MAX_LEADERS: Final = 2
"""Maximum number of groups of one gateway that are on their way at the same time."""

_MANY: Final = 2**62
_TENANT: Final[Any] = Tenant.__table__.alias("t")
_EMPTY_AT_FIRST: Final = frozenset(
    (
        *("started", "ended", "delete_at", "asked_until", "asked_by", "reading", "encodings", "error"),
        *("set_aside_until", "set_aside_by", "trouble"),
        *("owner", "deadline", "pictures", "objects", "problem"),
    )
)
"""Columns that no new row has a value for. They are left out of the statement: the driver parses one of 4096 characters
or more anew each time."""


@dataclass(frozen=True, kw_only=True)
class Admission:
    """A job that was admitted and stored."""

    others: int
    """Other open jobs of all tenants."""
    others_batch: int
    """Those of them that are not interactive."""


@dataclass(kw_only=True, eq=False)
class _Request:
    """A job that is to be admitted, and what became of it."""

    job: Job
    chunks: Sequence[Mapping[str, Any]]
    idle: bool | None
    turn: threading.Event = field(default_factory=threading.Event)
    """Set when it is answered, or leads the next group."""
    is_answered: bool = False
    admission: Admission | None = None
    error: BaseException | None = None


class Admissions:
    """Admits jobs; thread-safe, and blocks."""

    def __init__(self, database: Database, limits: Limits) -> None:
        self._database = database
        self._limits = limits
        self._lock = threading.Lock()
        self._waiting: list[_Request] = []
        self._leaders = 0
        """Number of requests whose threads answer groups now."""

    @property
    def waiting(self) -> int:
        """Number of jobs that wait until the statements of others are answered."""
        with self._lock:
            return len(self._waiting)

    def admit(
        self, job: Job, chunks: Sequence[Mapping[str, Any]], *, idle: bool | None = None
    ) -> Admission | None:
        """Stores a job with its chunks and labels if the limits allow it; returns None if nothing was stored.

        Args:
            job: the new job.
            chunks: the rows of its chunks.
            idle: admit it only if there are no other open jobs, or only if there are some; None ignores that.

        Raises:
            IntegrityError: the tenant has a job with this request_id.
            DatabaseUnavailableError: as in `Database.write`.
        """
        request = _Request(job=job, chunks=chunks, idle=idle)
        with self._lock:
            leads = self._leaders < MAX_LEADERS
            if leads:
                self._leaders += 1
            else:
                self._waiting.append(request)
        if not leads:
            request.turn.wait()
        if not request.is_answered:
            self._lead(request)
        if request.error is not None:
            raise request.error
        return request.admission

    def _lead(self, first: _Request) -> None:
        """Answers a request and those that wait and go with it, then lets the next one that waits lead."""
        with self._lock:
            group = [first, *(each for each in self._waiting if _go_together(first, each))][:MAX_TOGETHER]
            self._waiting = [each for each in self._waiting if each not in group]
        try:
            self._answer(group)
        finally:
            with self._lock:
                following = self._waiting.pop(0) if self._waiting else None
                self._leaders -= following is None
            for each in group:
                each.is_answered = True
                each.turn.set()
            if following is not None:
                following.turn.set()

    def _answer(self, group: Sequence[_Request]) -> None:
        try:
            admissions = self._admit([(each.job, each.chunks) for each in group], group[0].idle)
        except IntegrityError as error:
            admissions = None
            if len(group) == 1:
                group[0].error = error
        except BaseException as error:
            for each in group:
                each.error = error
            return
        if admissions is not None:
            for each, admission in zip(group, admissions, strict=True):
                each.admission = admission
        elif len(group) > 1:  # Not all of them can be admitted, but some may be.
            for each in group:
                self._answer([each])

    def _admit(
        self, jobs: Sequence[tuple[Job, Sequence[Mapping[str, Any]]]], idle: bool | None
    ) -> list[Admission] | None:
        """Admits all of several jobs of one tenant, or none."""
        batch = [int(job.priority > 0) for job, _ in jobs]
        values = {
            "of_tenant": jobs[0][0].tenant,
            "jobs": len(jobs),
            "batch": sum(batch),
            "bytes": sum(job.size or 0 for job, _ in jobs),
            "least": 1 if idle is False else -_MANY,
            "most": 0 if idle else _MANY,
            **_demand([job for job, _ in jobs]),
            **{f"limit_{name}": value for name, value in vars(self._limits).items()},
        }
        new_jobs = [_columns(Job, vars(job)) for job, _ in jobs]
        new_chunks = [_columns(Chunk, chunk) for _, chunks in jobs for chunk in chunks]
        new_labels = [
            {"job_id": job.id, "key": key, "value": value}
            for job, _ in jobs
            for key, value in job.labels.items()
        ]
        row: Sequence[Any] | None
        if self._database.is_sqlite:
            with self._database.write() as session:
                row = session.execute(_admission("max"), values).one_or_none()
                if row is not None:
                    used = sqlite.insert(_table(DailyUsage)).values(_USED)
                    session.execute(_counted(used), values)
                    for table, rows in ((Job, new_jobs), (Chunk, new_chunks), (Label, new_labels)):
                        if rows:
                            session.execute(insert(_table(table)), rows)
        else:
            values |= {
                f"new_{name}": json.dumps(rows)
                for name, rows in (("jobs", new_jobs), ("chunks", new_chunks), ("labels", new_labels))
            }
            row = self._database.execute(_admission_and_rows(), values)
        if row is None:
            return None
        return [
            Admission(others=int(row[0]) + number, others_batch=int(row[1]) + sum(batch[:number]))
            for number in range(len(jobs))
        ]


def _demand(jobs: Sequence[Job]) -> dict[str, int]:
    """Returns what jobs ask for together, as parameters of the statement that admits them."""
    now = max(job.created for job in jobs)
    return {
        "now": now,
        "today": day_of(now),
        "minutes": MINUTE * len(jobs),
        "asked": sum(job.candidates for job in jobs),
        "prompt": max(len(job.parameters["prompt"]) for job in jobs),
        "retention": max(-(-job.retention // MICROSECONDS) for job in jobs),
    }


def _go_together(first: _Request, other: _Request) -> bool:
    """Returns whether two jobs can be admitted by one statement; a job that must be alone cannot."""
    return first.job.tenant == other.job.tenant and first.idle == other.idle and not first.idle


@cache
def _names(table: type[Job | Chunk | Label]) -> dict[str, str]:
    """Returns the names of the columns of a table, by the names of their attributes."""
    mapper: Mapper[Any] = inspect(table)
    return {attribute.key: attribute.columns[0].name for attribute in mapper.column_attrs}


def _columns(table: type[Job | Chunk], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row by the names of its columns; those that have no value are NULL."""
    return {name: values.get(key) for key, name in _names(table).items()}


@cache
def _admission(larger: str) -> Update:
    """Returns the statement that admits jobs of a tenant: it finds the row of the tenant, or none.

    A statement that has waited for another one's compares with the row as it is then, so the limits of a tenant are
    exact. Those of all tenants together may be exceeded by as many jobs as other tenants are given meanwhile.

    Args:
        larger: the database's function for the larger of two values.
    """
    row: Any = _TENANT.c
    of_jobs = {
        "open_jobs": "jobs",
        "open_batch_jobs": "batch",
        "stored_jobs": "jobs",
        "stored_bytes": "bytes",
    }
    more = {name: _number(value) for name, value in of_jobs.items()}
    now, day = _number("now"), _number("today")

    def own(name: str) -> ColumnElement[int]:
        return func.coalesce(row[f"max_{name}"], _number(f"limit_{name}"))

    is_within: list[ColumnElement[bool]] = []
    for name in LIMITED:
        counter, limit = row[name], _number(f"limit_{name}")
        if name == "stored_bytes":  # The last job may exceed it.
            is_within += [counter < own(name), counter + others(name) < limit]
        else:
            is_within += [counter + more[name] <= own(name), counter + more[name] + others(name) <= limit]
    requests_until = getattr(func, larger)(row.requests_until, now) + _number("minutes") // own("requests")
    day_candidates = case((row.day == day, row.day_candidates), else_=literal_column("0")) + _number("asked")
    is_within += [
        requests_until <= now + literal_column(str(MINUTE)),
        day_candidates <= own("candidates"),
        _number("prompt") <= own("prompt"),
        _number("retention") <= own("retention"),
    ]
    all_open = row.open_jobs + others("open_jobs")
    changes = {name: row[name] + value for name, value in more.items()}
    changes |= {"requests_until": requests_until, "day": day, "day_candidates": day_candidates}
    return (
        update(_TENANT)
        .where(
            row.id == bindparam("of_tenant", type_=String),
            *is_within,
            all_open.between(_number("least"), _number("most")),
        )
        .values(changes)
        .returning(
            (all_open - more["open_jobs"]).label("others"),
            (row.open_batch_jobs + others("open_batch_jobs") - more["open_batch_jobs"]).label("batch"),
        )
    )


def _number(name: str) -> BindParameter[int]:
    return bindparam(name, type_=BigInteger)


_USED: Final[Mapping[str, BindParameter[Any]]] = {
    "tenant": bindparam("of_tenant", type_=String),
    "day": _number("today"),
    "requests": _number("jobs"),
    "candidates": _number("asked"),
}
"""A row of the table of what was used, from parameters of the statement that admits jobs."""


def _counted(statement: Any) -> Any:
    """Returns the insertion of such a row, which adds to the row of the same day."""
    sums = {name: getattr(DailyUsage, name) + statement.excluded[name] for name in ("requests", "candidates")}
    return statement.on_conflict_do_update(index_elements=["tenant", "day"], set_=sums)


@cache
def _admission_and_rows() -> Select[Any]:
    """Returns the statement of PostgreSQL that admits jobs and stores all their rows, which are JSON."""
    admitted = _admission("greatest").cte("admitted")

    def rows(table: Table) -> CTE:
        names = [column.name for column in table.columns if column.name not in _EMPTY_AT_FIRST]
        text = cast(bindparam(f"new_{table.name}", type_=Text), JSON)
        of_table: ColumnElement[Any] = literal_column(f"NULL::{table.name}")
        row = func.json_populate_recordset(of_table, text).table_valued(*names).alias("r")
        # Without the names that SQLAlchemy would give to each column.
        columns: list[Any] = [literal_column(f"r.{name}") for name in names]
        chosen = select(*columns).select_from(admitted.join(row, true()))
        return insert(table).from_select(names, chosen).cte(f"new_{table.name}")

    tables = (Job, Chunk, Label)
    values: tuple[BindParameter[Any], ...] = tuple(_USED.values())
    row: Select[Any] = select(*values).select_from(admitted)
    used = postgresql.insert(_table(DailyUsage)).from_select(list(_USED), row)
    return select(admitted.c.others, admitted.c.batch).add_cte(
        *(rows(_table(each)) for each in tables), _counted(used).cte("used")
    )


def _table(of: type[Job | Chunk | Label | DailyUsage]) -> Table:
    table = of.__table__
    assert isinstance(table, Table)
    return table
