"""The database of the gateways, for commands of their operator."""

import getpass
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import typer

from smalti.cli.extras import needs_extra
from smalti.errors import InvalidInputError

if TYPE_CHECKING:
    from smalti.services.gateway.database.connection import Database

VARIABLE: Final = "SMALTI_GATEWAY_DATABASE"
TIMEOUT_SECONDS: Final = 5.0
"""Time that a transaction waits for a lock or a connection."""


def command_group(about: str, *commands: Callable[..., Any]) -> typer.Typer:
    """Returns a group of commands that use the database; each has the first word of its function's name."""
    group = typer.Typer(help=about, no_args_is_help=True)
    for command in commands:
        group.command(command.__name__.partition("_")[0])(needs_extra("gateway")(command))
    return group


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
    from smalti.services.gateway.database.opening import operators_database
    from smalti.services.gateway.settings import gateway_settings

    with operators_database(gateway_settings(), TIMEOUT_SECONDS) as database:
        if not database.examine().is_current:
            raise InvalidInputError(
                VARIABLE, f"has no table of {what} yet; run smalti migrate, which makes it"
            )
        yield database


def iso_time(microseconds: int) -> str:
    """Returns a time of the database for people and programs, in whole seconds."""
    return datetime.fromtimestamp(microseconds // 1_000_000, UTC).isoformat(timespec="seconds")


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
