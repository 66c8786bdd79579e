"""The database of the gateways, for commands of their operator."""

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from smalti.errors import DatabaseUnavailableError, InvalidInputError

if TYPE_CHECKING:
    from smalti.services.gateway.database.connection import Database

VARIABLE: Final = "SMALTI_GATEWAY_DATABASE"


@contextmanager
def gateway_database(what: str) -> "Iterator[Database]":
    """Opens the database; it must have the tables already.

    Args:
        what: what the command looks for in it, for the error.

    Raises:
        InvalidInputError: it cannot be used, or has no tables.
        DatabaseUnavailableError: it does not answer.
    """
    # Only where they are needed: SQLAlchemy takes long to load.
    from smalti.services.gateway.database import connection
    from smalti.services.gateway.settings import gateway_settings

    database = connection.Database(gateway_settings().database.get_secret_value())
    try:
        if not database.examine().is_current:
            raise InvalidInputError(
                VARIABLE, f"has no table of {what} yet; run smalti migrate, which makes it"
            )
        yield database
    except DatabaseUnavailableError as error:
        cause = connection.describe(error.__cause__ or error)
        raise DatabaseUnavailableError(f"{VARIABLE}: {cause}") from None
    finally:
        database.close()


def open_audit() -> None:
    """Opens the audit log, if it has a file. A command that changes something does so before it does.

    Raises:
        InvalidInputError: the file cannot be written; names the variable.
    """
    from smalti.settings import read_settings
    from smalti.telemetry import LogSettings, audit

    if file := read_settings(LogSettings).audit:
        audit.set_up(file, audit.json_formatter())


def report(event: str, **fields: Any) -> None:
    """Writes a line to the audit log, if it has a file; the database has the same."""
    from smalti.settings import read_settings
    from smalti.telemetry import LogSettings, audit

    if read_settings(LogSettings).audit:
        audit.write(event, who=f"operator {_user()}", **fields)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # A container's bare user id.
        return "unknown"
