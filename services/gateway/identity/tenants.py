"""Tenants in the database: their weights and limits."""

from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import select

from smalti.errors import InvalidInputError
from smalti.services.gateway.database import schema
from smalti.services.gateway.database.clock import Clock, to_microseconds
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import DailyUsage, Tenant
from smalti.services.gateway.identity.keys import DAY, check_tenant

MAX_WEIGHT: Final = 100
MAX_LIMIT: Final = 2**40
LIMITS: Final[Mapping[str, int]] = {
    "max_open_jobs": 0,
    "max_stored_jobs": 0,
    "max_stored_bytes": 0,
    "max_requests": 1,
    "max_candidates": 1,
    "max_batch_slots": 1,
    "max_prompt": 1,
    "max_retention": 60,
}
"""The limits of a tenant that can be set, and the least that each may be."""


class TenantRepository:
    """The tenants of a database; thread-safe, and every call blocks."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Takes the database, whose tables must exist, and the clock."""
        self._database = database
        self._clock = clock

    def list(self) -> Sequence[Tenant]:
        """Returns all tenants by their names."""
        with self._database.read() as session:
            return session.scalars(select(Tenant).order_by(Tenant.id)).all()

    def usage(self, days: int) -> Sequence[DailyUsage]:
        """Returns what tenants have used today and on the days before, the newest first."""
        since = (to_microseconds(self._clock()) // DAY - days + 1) * DAY
        query = select(DailyUsage).where(DailyUsage.day >= since)
        with self._database.read() as session:
            return session.scalars(query.order_by(DailyUsage.day.desc(), DailyUsage.tenant)).all()

    def create(
        self, name: str, *, weight: int | None = None, limits: Mapping[str, int | None] | None = None
    ) -> Tenant:
        """Makes a tenant; raises `InvalidInputError` if there is one of this name, or a value is invalid."""
        check_tenant(name, "tenant")
        with self._database.write() as session:
            if session.get(Tenant, name) is not None:
                raise InvalidInputError("tenant", f"{name!r} exists already; change it with `set`")
            made = Tenant(id=name)
            _change(made, weight, limits or {})
            session.add(made)
            schema.require(session, schema.TENANTS)
        return made

    def set(
        self, name: str, *, weight: int | None = None, limits: Mapping[str, int | None] | None = None
    ) -> Tenant:
        """Changes a tenant.

        Args:
            name: its name.
            weight: its share when tenants take turns; None leaves it.
            limits: limits by their names in `LIMITS`; None removes one, so that the setting's holds. Others stay.

        Raises:
            InvalidInputError: there is no such tenant, or a value is invalid.
        """
        with self._database.write() as session:
            found = session.get(Tenant, name)
            if found is None:
                raise InvalidInputError("tenant", f"there is no tenant {name!r}; make it with `create`")
            _change(found, weight, limits or {})
        return found


def _change(tenant: Tenant, weight: int | None, limits: Mapping[str, int | None]) -> None:
    if weight is not None:
        if not 1 <= weight <= MAX_WEIGHT:
            raise InvalidInputError("weight", f"must be between 1 and {MAX_WEIGHT}, got {weight}")
        tenant.weight = weight
    for name, value in limits.items():
        if value is not None and not LIMITS[name] <= value <= MAX_LIMIT:
            raise InvalidInputError(name, f"must be between {LIMITS[name]} and {MAX_LIMIT}, got {value}")
        setattr(tenant, name, value)
