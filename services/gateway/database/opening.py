"""Opening the database: for a gateway that starts, and for a command of its operator."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from smalti.errors import DatabaseUnavailableError, InvalidInputError
from smalti.services.gateway.database.connection import RETRY_SECONDS, Database, describe
from smalti.services.gateway.settings import GATEWAY_PREFIX, GatewaySettings

log = logging.getLogger(__name__)


def migrate_when_ready(database: Database, seconds: float) -> str:
    """Migrates the database, and returns what it found; retries while it does not answer.

    Raises:
        DatabaseUnavailableError: the database did not answer in time.
        InvalidInputError: the database cannot be used as it is; says what to change.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return f"{database.migrate()}, ready"
        except DatabaseUnavailableError:
            if time.monotonic() + RETRY_SECONDS > deadline:
                raise
            time.sleep(RETRY_SECONDS)


def wait_until_migrated(database: Database, seconds: float) -> str:
    """Waits until somebody else has migrated the database, and returns what it found; changes nothing.

    Raises:
        DatabaseUnavailableError: the database did not answer in time.
        InvalidInputError: the schema is still behind; names the command that migrates. Or the database cannot be used.
    """
    deadline = time.monotonic() + seconds
    told = False
    while True:
        try:
            state = database.examine()
            if state.is_current:
                return f"{state.found}, ready"
            problem: Exception = InvalidInputError(f"{GATEWAY_PREFIX}DATABASE", state.behind)
            if not told:
                log.warning("the database %s; waiting for it", state.behind)
            told = True
        except DatabaseUnavailableError as error:
            problem = error
        if time.monotonic() + RETRY_SECONDS > deadline:
            raise problem
        time.sleep(RETRY_SECONDS)


@contextmanager
def operators_database(settings: GatewaySettings, timeout: float) -> Iterator[Database]:
    """Opens the database, and closes it after the block.

    Args:
        settings: name it.
        timeout: as in `Database`.

    Raises:
        InvalidInputError: it cannot be used as it is.
        DatabaseUnavailableError: it does not answer; names the variable, and says what the driver says.
    """
    database = Database(settings.database.get_secret_value(), timeout=timeout)
    try:
        yield database
    except DatabaseUnavailableError as error:
        cause = describe(error.__cause__ or error)
        raise DatabaseUnavailableError(f"{GATEWAY_PREFIX}DATABASE: {cause}") from None
    finally:
        database.close()
