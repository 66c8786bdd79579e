"""Reads which chunks wait, and which are in the queues, by revision, priority and tenant, without reading all."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    CompoundSelect,
    Select,
    SmallInteger,
    String,
    bindparam,
    cast,
    func,
    literal_column,
    null,
    select,
    true,
    union_all,
)
from sqlalchemy.orm import Session

from smalti.parameters import Priority
from smalti.services.gateway.database.tables import (
    IS_LEASED,
    IS_WAITING,
    PRIORITY_NUMBERS,
    Chunk,
    Job,
    Tenant,
)
from smalti.services.gateway.jobs.aside import is_set_aside

MAX_TENANTS: Final = 32
"""Maximum number of tenants whose chunks are read together."""


class WaitingChunk(NamedTuple):
    """A chunk that waits."""

    job_id: str
    number: int
    size: int
    """Number of its candidates, or pictures."""


@dataclass
class OfTenant:
    """What a tenant has to send."""

    name: str
    weight: int
    slots: int | None
    """Candidates that it may have in the queues; None for any number."""
    taken: int
    """Candidates that it has there."""
    chunks: deque[WaitingChunk] = field(default_factory=deque)
    """The oldest that wait."""
    has_more: bool = False
    """Whether more may wait than these."""

    def may_send(self, chunk: WaitingChunk) -> bool:
        """Returns whether it has slots left; a single chunk may be larger than they are."""
        return self.slots is None or self.taken == 0 or self.taken + chunk.size <= self.slots


class TenantWork(NamedTuple):
    """What tenants have to send, in the order of their turns."""

    tenants: list[OfTenant]
    is_all: bool
    """Whether there are no other tenants with work."""


class _Leased(NamedTuple):
    revision: str | None
    priority: int
    tenant: str
    candidates: int


@dataclass(frozen=True)
class WaitingWork:
    """Which revisions have work that waits, and what is in the queues."""

    revisions: list[str | None]
    leased: list[_Leased]

    def leased_by_revision(self) -> dict[str | None, int]:
        """Returns the number of candidates in the queues, by revision."""
        found: dict[str | None, int] = {}
        for each in self.leased:
            found[each.revision] = found.get(each.revision, 0) + each.candidates
        return found

    def reader(
        self,
        session: Session,
        *,
        revision: str | None,
        priority: Priority,
        turn: int,
        limit: int,
        batch_slots: int | None,
        now: float,
    ) -> Callable[[str], TenantWork]:
        """Returns what reads the work of tenants in a priority of a revision, from that of a given tenant on.

        Args:
            session: a transaction.
            revision: the revision.
            priority: the priority.
            turn: candidates of a turn, of which at least one is read of each tenant.
            limit: maximum number of chunks of a tenant.
            batch_slots: what tenants without a limit of their own may have of batch work in the queues.
            now: the time in seconds.
        """
        number = PRIORITY_NUMBERS[priority]
        taken: dict[str, int] = {}
        for each in self.leased:
            if each.priority == number:
                taken[each.tenant] = taken.get(each.tenant, 0) + each.candidates

        def read(first: str) -> TenantWork:
            values = {"priority": number, "revision": revision, "first": first, "turn": turn, "limit": limit}
            found: dict[str, OfTenant] = {}
            for name, weight, slots, *chunk in _rows(session, values, revision is None, now):
                if name not in found:
                    own = (slots or batch_slots) if priority is Priority.BATCH else None
                    found[name] = OfTenant(name, max(1, weight or 1), own, taken.get(name, 0))
                if chunk[0] is not None:
                    found[name].chunks.append(WaitingChunk(*chunk))
            for each in found.values():
                each.has_more = len(each.chunks) >= _most(limit, len(found), turn * each.weight)
            return TenantWork(list(found.values()), len(found) < MAX_TENANTS)

        return read


def look(session: Session) -> WaitingWork:
    """Returns which revisions have work that waits, and what is in the queues."""
    revisions: list[str | None] = []
    leased = []
    for is_waiting, *row in session.execute(_overview()):
        if is_waiting:
            revisions.append(row[0])
        else:
            leased.append(_Leased(row[0], row[1], row[2], int(row[3])))
    return WaitingWork(revisions, leased)


def _rows(session: Session, values: dict[str, Any], is_null: bool, now: float) -> Iterator[Any]:
    """Yields tenants in the order of their turns, each with its first chunks, or with None in place of one."""
    if session.get_bind().dialect.name != "sqlite":
        yield from session.execute(_work(is_null, is_set_aside(now)), values)
        return
    # SQLite has no LATERAL, and no round trips either.
    tenants = session.execute(_ring(is_null), values).all()
    tenant, most = bindparam("tenant", type_=String), bindparam("most", type_=BigInteger)
    of_tenant = _chunks(is_null, is_set_aside(now), tenant).limit(most)
    for name, weight, slots in tenants:
        most_of_tenant = _most(values["limit"], len(tenants), values["turn"] * max(1, weight or 1))
        given = {**values, "tenant": name, "most": most_of_tenant}
        chunks: Sequence[Any] = session.execute(of_tenant, given).all()
        for chunk in chunks or [(None, None, None)]:
            yield (name, weight, slots, *chunk)


def _most(limit: int, tenants: int, own_turn: int) -> int:
    """Returns how many chunks are read of a tenant; `_work` has the same formula in SQL."""
    return min(limit, limit // tenants + own_turn)


def _of_revision(is_null: bool) -> ColumnElement[bool]:
    return Chunk.revision.is_(null()) if is_null else Chunk.revision == bindparam("revision", type_=String)


_ORDER: Final[Sequence[Any]] = (
    *(Chunk.revision, Chunk.priority, Chunk.tenant),
    *(Chunk.created, Chunk.job_id, Chunk.number),
)
"""The order of the index, named whole: for a revision that is NULL, the databases would sort all chunks otherwise."""


def _next(column: Any, *conditions: ColumnElement[bool]) -> Any:
    """Returns the least value of a column among chunks that wait, which an index finds."""
    found = select(column).where(IS_WAITING, column.is_not(None), *conditions)
    return found.order_by(*_ORDER[:3]).limit(literal_column("1")).scalar_subquery()


@cache
def _overview() -> CompoundSelect[Any]:
    nothing: Any = literal_column("NULL")
    revision: Any = Chunk.revision
    seen = select(_next(revision).label("revision")).cte("seen", recursive=True)
    seen = seen.union_all(
        select(_next(revision, revision > seen.c.revision)).where(seen.c.revision.is_not(None))
    )
    old = _next(Chunk.priority, Chunk.revision.is_(null())).is_not(None)
    leased: Any = select(
        literal_column("0"), Chunk.revision, Chunk.priority, Chunk.tenant, func.sum(Chunk.count)
    ).where(IS_LEASED)
    return union_all(
        leased.group_by(Chunk.revision, Chunk.priority, Chunk.tenant),
        select(literal_column("1"), seen.c.revision, nothing, nothing, nothing).where(
            seen.c.revision.is_not(None)
        ),
        select(literal_column("1"), nothing, nothing, nothing, nothing).where(old),
    )


@cache
def _turns(is_null: bool) -> CTE:
    """Returns the tenants with work in the order of their turns: from the given one on, then those before it."""
    tenant: Any = Chunk.tenant
    first = bindparam("first", type_=String)
    within = _of_revision(is_null), Chunk.priority == bindparam("priority", type_=SmallInteger)
    one: Any = literal_column("1")

    def walk(name: str, *beginning: ColumnElement[bool]) -> CTE:
        begin = select(_next(tenant, *within, *beginning).label("tenant"), one.label("place"))
        found = begin.cte(name, recursive=True)
        following = select(_next(tenant, *within, tenant > found.c.tenant), found.c.place + one)
        return found.union_all(following.where(found.c.tenant.is_not(None), found.c.place < MAX_TENANTS))

    after, before = walk("after", tenant >= first), walk("before")
    both = union_all(
        select(after.c.tenant, after.c.place, literal_column("0").label("lap")).where(
            after.c.tenant.is_not(None)
        ),
        select(before.c.tenant, before.c.place, one).where(before.c.tenant < first),
    ).subquery("both_laps")
    return (
        select(both, func.count().over().label("total"))
        .order_by(both.c.lap, both.c.place)
        .limit(literal_column(str(MAX_TENANTS)))
        .cte("turns")
    )


@cache
def _ring(is_null: bool) -> Select[Any]:
    turns = _turns(is_null)
    return (
        select(turns.c.tenant, Tenant.weight, Tenant.max_batch_slots)
        .outerjoin_from(turns, Tenant, Tenant.id == turns.c.tenant)
        .order_by(turns.c.lap, turns.c.place)
    )


def _chunks(is_null: bool, aside: ColumnElement[bool], tenant: Any) -> Select[Any]:
    """Returns the chunks of a tenant in the order in which they came, without those of jobs that are set aside."""
    columns: Any = select(Chunk.job_id, Chunk.number, Chunk.count)
    return columns.where(
        IS_WAITING,
        _of_revision(is_null),
        Chunk.priority == bindparam("priority", type_=SmallInteger),
        Chunk.tenant == tenant,
        Chunk.job_id.not_in(select(Job.id).where(aside)),
    ).order_by(*_ORDER)


def _work(is_null: bool, aside: ColumnElement[bool]) -> Select[Any]:
    """Returns the statement of PostgreSQL that reads the chunks of tenants."""
    turns = _turns(is_null)
    limit, turn = bindparam("limit", type_=BigInteger), bindparam("turn", type_=BigInteger)
    share = limit // cast(func.least(turns.c.total, literal_column(str(MAX_TENANTS))), BigInteger)
    own = turn * func.greatest(func.coalesce(Tenant.weight, literal_column("1")), literal_column("1"))
    chunks = _chunks(is_null, aside, turns.c.tenant).limit(func.least(limit, share + own)).lateral("chosen")
    return (
        select(turns.c.tenant, Tenant.weight, Tenant.max_batch_slots, *chunks.c)
        .select_from(turns.outerjoin(Tenant, Tenant.id == turns.c.tenant).outerjoin(chunks, true()))
        .order_by(turns.c.lap, turns.c.place)
    )
