"""The database of the gateways, for commands of their operator."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

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
