"""The schema of the database: its migrations.

Each migration is a transaction of its own. It locks tables for no longer than it needs, and nothing of one that fails,
is interrupted, or is killed remains; those before it stay, since every schema is one that gateways can use.
"""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, select, text, update
from sqlalchemy.orm import Session

from smalti.errors import InvalidInputError
from smalti.service import failpoints
from smalti.services.gateway.database.tables import Base, SchemaCompatibility
from smalti.services.gateway.settings import GATEWAY_PREFIX

log = logging.getLogger(__name__)

MIGRATIONS: Final = Path(__file__).parent / "migrations"
METADATA: Final = Base.metadata
"""All tables."""
TENANTS: Final = "0008"
"""The first schema whose gateways know tenants."""
BATCHES: Final = "0013"
"""The first schema whose gateways know batches."""
OLDEST: Final = "0001"
"""The oldest schema from which this version migrates."""


def current(connection: Connection) -> str | None:
    """Returns the schema of the database; None without tables."""
    return MigrationContext.configure(connection).get_current_revision()


@cache
def known_range() -> tuple[str, str]:
    """Returns the oldest and the newest schema that this version knows."""
    return OLDEST, ScriptDirectory(str(MIGRATIONS)).get_current_head() or ""


def is_current(engine: Engine) -> bool:
    """Returns whether there is nothing to migrate: the schema is this version's, or a newer one that it can use.

    Raises:
        InvalidInputError: a newer gateway has made a schema that this one cannot use.
    """
    scripts = ScriptDirectory(str(MIGRATIONS))
    head = scripts.get_current_head() or ""
    with engine.connect() as connection:
        found = current(connection)
        if found in (None, *(script.revision for script in scripts.walk_revisions())):
            return found == head
        oldest = None
        if inspect(connection).has_table(SchemaCompatibility.__tablename__):
            oldest = connection.scalar(select(SchemaCompatibility.oldest))
    # Revisions have the same number of digits, so they are compared as text.
    if oldest is None or oldest > head:
        raise InvalidInputError(
            f"{GATEWAY_PREFIX}DATABASE",
            f"has schema {found}, and this version knows {head}; start a newer gateway (one that knows "
            f"{oldest or found} or later), or use a backup of the database",
        )
    log.info("the database has schema %s; this version knows %s, and can use it", found, head)
    return True


def require(session: Session, revision: str) -> None:
    """Lets no gateway start any more that knows only schemas before a revision, as a part of a transaction.

    To be called when something is stored that such gateways would get wrong.
    """
    session.execute(
        update(SchemaCompatibility).where(SchemaCompatibility.oldest < revision).values(oldest=revision)
    )


@dataclass(frozen=True, kw_only=True)
class Step:
    """A migration."""

    revision: str
    """The schema that it makes."""
    about: str
    """What it does, in one line."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a migration may keep others waiting, and what it reports."""

    lock: float = 2.0
    """Seconds for which it waits for a lock; callers of running gateways wait behind it for as long."""
    statement: float = 0.0
    """Seconds that a statement may take; 0 for as long as it needs."""
    begun: Callable[[Step, Connection], None] = lambda step, connection: None
    """Called in the transaction of a step before it does anything."""
    ending: Callable[[], None] = lambda: None
    """Called before each commit; what it raises takes the step back."""
    done: Callable[[Step, float], None] = lambda step, seconds: None
    """Called after each commit, with the seconds that the step has taken."""


def pending(found: str | None, to: str = "") -> list[Step]:
    """Returns the steps from one schema to another; none from one that is newer.

    Args:
        found: the schema of a database; None without tables.
        to: the wanted schema; empty for the newest that this version knows.

    Raises:
        InvalidInputError: this version does not know the wanted schema.
    """
    scripts = ScriptDirectory(str(MIGRATIONS))
    known = {script.revision: script for script in scripts.walk_revisions()}
    if to and to not in known:
        raise InvalidInputError("--to", f"{to[:60]!r} must be one of {', '.join(sorted(known))}")
    if found is not None and found not in known:
        return []
    # Revisions have the same number of digits, so they are compared as text.
    wanted = sorted(revision for revision in known if (found or "") < revision <= (to or max(known)))
    return [Step(revision=each, about=(known[each].doc or "").partition("\n")[0]) for each in wanted]


def upgrade(
    begin: Callable[[], AbstractContextManager[Connection]], limits: Limits | None = None, to: str = ""
) -> None:
    """Migrates the database step by step.

    Args:
        begin: opens a writing transaction on a connection of its own.
        limits: what it reports to.
        to: the wanted schema; empty for the newest.

    Raises:
        InvalidInputError: this version does not know the wanted schema.
        DBAPIError: a step has failed; it is taken back, and those before it stay.
    """
    limits = limits or Limits()
    while True:
        with begin() as connection:
            if connection.dialect.name != "sqlite":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _KEY})
            steps = pending(current(connection), to)  # Another one may have done the last one meanwhile.
            if not steps:
                return
            started = time.monotonic()
            limits.begun(steps[0], connection)
            command.upgrade(configuration(connection), steps[0].revision)
            failpoints.reach("gateway.before-migrated", job=steps[0].revision)
            limits.ending()
        limits.done(steps[0], time.monotonic() - started)


_KEY: Final = 0x534D414C544A
"""Key of the advisory lock in PostgreSQL with which one process at a time migrates."""


def configuration(connection: Connection) -> Config:
    """Returns the configuration of alembic for migrating over a connection."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config
