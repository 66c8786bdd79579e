"""The schema of the database: its migrations."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

MIGRATIONS: Final = Path(__file__).parent / "migrations"


def is_current(engine: Engine) -> bool:
    """Returns whether there is nothing to migrate."""
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    return current == ScriptDirectory(str(MIGRATIONS)).get_current_head()


def upgrade(connection: Connection) -> None:
    """Migrates to the newest version, within the transaction of a connection."""
    command.upgrade(configuration(connection), "head")


def configuration(connection: Connection) -> Config:
    """Returns the configuration of alembic for migrating over a connection."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config
