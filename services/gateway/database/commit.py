"""What a transaction does when it commits: it counts jobs of tenants, stores notices for webhooks, and notifies other
gateways of changed jobs.

The row of a tenant is what all requests wait for, so it is locked last. On PostgreSQL these statements and the COMMIT
travel together, so the lock is not held for a round trip, and they cost none.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from smalti.services.gateway.database.tables import COUNTERS

CHANNEL: Final = "smalti_jobs"
"""Channel of PostgreSQL on which the ids of changed jobs are sent, each after the id of the gateway that sends it."""

_KEY: Final = "smalti_at_commit"
_COUNT: Final = text(
    f"UPDATE tenants SET {', '.join(f'{name} = {name} + :{name}' for name in COUNTERS)} WHERE id = :tenant"
)
_DELIVER: Final = text(
    "INSERT INTO deliveries (id, tenant, subject, version, url, body, created, due, tries) "
    "SELECT CAST(:id AS VARCHAR(36)), tenant, CAST(:subject AS VARCHAR(64)), CAST(:version AS BIGINT), "
    "coalesce(CAST(:url AS VARCHAR(2048)), url), "
    "CASE WHEN coalesce(CAST(:include_prompt AS BOOLEAN), include_prompt) "
    "THEN CAST(:body_with_prompt AS TEXT) ELSE CAST(:body AS TEXT) END, "
    "CAST(:now AS BIGINT), CAST(:now AS BIGINT), 0 "
    "FROM webhooks WHERE tenant = :tenant AND coalesce(CAST(:url AS VARCHAR(2048)), url) IS NOT NULL"
)
"""Stores a notice if the tenant has a secret, and the job or the tenant a URL."""
_NOTIFY: Final = text("SELECT pg_notify(:channel, notice) FROM unnest(CAST(:notices AS text[])) AS notice")


@dataclass
class _AtCommit:
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """What to add to the counters, by tenant."""
    deliveries: list[dict[str, Any]] = field(default_factory=list)
    """Notices for webhooks."""
    changed: dict[str, None] = field(default_factory=dict)
    """Jobs that clients see in a new version."""


def count_at_commit(session: Session, tenant: str, **counters: int) -> None:
    """Adds numbers to counters of a tenant when the transaction commits.

    Args:
        session: a transaction of `Database.write`.
        tenant: the tenant.
        counters: what to add, by the name of the counter.
    """
    counts = _of(session).counts.setdefault(tenant, Counter())
    for name, number in counters.items():
        counts[name] += number


def deliver_at_commit(session: Session, **notice: Any) -> None:
    """Stores a notice for a webhook at the commit, if the tenant wants to be told.

    Args:
        session: a transaction of `Database.write`.
        notice: its `id`, `tenant`, `subject`, `version`, `body`, `body_with_prompt`, the time `now`, and what the
            subject itself asks for: `url` and `include_prompt`, or None for what the tenant has set.
    """
    _of(session).deliveries.append(notice)


def notify_at_commit(session: Session, job_id: str) -> None:
    """Notifies the other gateways of a changed job at the commit; on SQLite there are none."""
    _of(session).changed[job_id] = None


def commit(session: Session, sender: str) -> None:
    """Does what is to be done at the commit, and commits.

    Args:
        session: a transaction whose changes are sent to the database already.
        sender: identity of this gateway, which leaves out its own notices.
    """
    at_commit: _AtCommit | None = session.info.pop(_KEY, None)
    if at_commit is None:
        session.commit()
        return
    # In one order, so that no two transactions wait for each other.
    statements: list[tuple[Any, dict[str, Any]]] = [(_DELIVER, each) for each in at_commit.deliveries]
    statements += [
        (_COUNT, {"tenant": tenant, **{name: counts[name] for name in COUNTERS}})
        for tenant, counts in sorted(at_commit.counts.items())
    ]
    connection = session.connection()
    if connection.dialect.name == "sqlite":
        for statement, values in statements:
            session.execute(statement, values)
    else:
        if at_commit.changed:
            notices = [f"{sender} {job_id}" for job_id in at_commit.changed]
            statements.append((_NOTIFY, {"channel": CHANNEL, "notices": notices}))
        driver: Any = connection.connection.driver_connection
        texts = [(str(each.compile(dialect=connection.dialect)), values) for each, values in statements]
        _commit_together(driver, texts)
    session.commit()  # Costs nothing where it was done already.


def _of(session: Session) -> _AtCommit:
    found: _AtCommit = session.info.setdefault(_KEY, _AtCommit())
    return found


def _commit_together(driver: "psycopg.Connection[Any]", statements: list[tuple[str, dict[str, Any]]]) -> None:
    """Sends statements and the COMMIT at once, and waits for all answers."""
    try:
        if psycopg.Pipeline.is_supported():
            with driver.pipeline():
                for statement, values in statements:
                    driver.execute(statement, values)
                driver.commit()
        else:
            for statement, values in statements:
                driver.execute(statement, values)
            driver.commit()
    except psycopg.Error as error:
        raise OperationalError("COMMIT", None, error) from error
