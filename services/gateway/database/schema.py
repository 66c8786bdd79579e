"""The schema of the database: its migrations."""

import logging
from functools import cache
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, select

from smalti.errors import InvalidInputError
from smalti.services.gateway.database import model_tables, tenant_tables
from smalti.services.gateway.database.tables import Base, SchemaCompatibility
from smalti.services.gateway.settings import GATEWAY_PREFIX

log = logging.getLogger(__name__)

MIGRATIONS: Final = Path(__file__).parent / "migrations"


METADATA: Final = Base.metadata
"""All tables, also those of these modules."""
assert model_tables.Revision.metadata is tenant_tables.Delivery.metadata is METADATA

OLDEST: Final = "0001"
"""The oldest schema from which this version migrates."""


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
        current = MigrationContext.configure(connection).get_current_revision()
        if current in (None, *(script.revision for script in scripts.walk_revisions())):
            return current == head
        oldest = None
        if inspect(connection).has_table(SchemaCompatibility.__tablename__):
            oldest = connection.scalar(select(SchemaCompatibility.oldest))
    # Revisions have the same number of digits, so they are compared as text.
    if oldest is None or oldest > head:
        raise InvalidInputError(
            f"{GATEWAY_PREFIX}DATABASE",
            f"has schema {current}, and this version knows {head}; start a newer gateway (one that knows "
            f"{oldest or current} or later), or use a backup of the database",
        )
    log.info("the database has schema %s; this version knows %s, and can use it", current, head)
    return True


def upgrade(connection: Connection) -> None:
    """Migrates to the newest version, within the transaction of a connection."""
    command.upgrade(configuration(connection), "head")


def configuration(connection: Connection) -> Config:
    """Returns the configuration of alembic for migrating over a connection."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config
