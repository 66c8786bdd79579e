"""Which errors of the database's drivers mean that it cannot be used for now."""

import sqlite3
from typing import Final

from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

UNAVAILABLE_CLASSES: Final = ("08", "25", "40", "53", "55", "57")
"""Classes of SQLSTATE: connection lost, wrong state of the transaction (a standby is read-only; a transaction was idle
for too long), rolled back (deadlock), no resources (disk, memory, connections), locked, and ended by the operator."""
READ_ONLY: Final = "25006"
UNAVAILABLE_CODES: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)

_LOCKED, _FULL, _READ_ONLY = (
    "the database is locked",
    "the disk of the database is full",
    "the database is read-only",
)
_TEXTS: Final[dict[int | str, str]] = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    "55P03": _LOCKED,
    sqlite3.SQLITE_FULL: _FULL,
    "53100": _FULL,
    sqlite3.SQLITE_READONLY: _READ_ONLY,
    READ_ONLY: _READ_ONLY,
}


def unavailable(error: DBAPIError) -> str | None:
    """Returns why the database cannot be used for now; None if the call, not the database, is the cause.

    The driver's own text has addresses, which are not for callers.
    """
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        # Extended codes have the primary code in their low byte. Errors of the driver itself have no code.
        code: int | str = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        known = code in UNAVAILABLE_CODES
    else:
        code = getattr(cause, "sqlstate", None) or ""
        # Without a code the connection was refused, or is lost.
        known = (
            code[:2] in UNAVAILABLE_CLASSES if code else isinstance(error, OperationalError | InterfaceError)
        )
    return _TEXTS.get(code, "the database does not answer") if known else None


def drop_read_only(context: ExceptionContext) -> None:
    """Drops all pooled connections when their server has become a standby; new ones look for the primary."""
    if getattr(context.original_exception, "sqlstate", None) == READ_ONLY:
        context.is_disconnect = True
