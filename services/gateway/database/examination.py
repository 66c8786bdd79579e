"""Whether a database can be used at all, asked once at the start: its version, its encoding, the rights of its user."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from smalti.errors import InvalidInputError
from smalti.services.gateway.database.schema import METADATA
from smalti.services.gateway.settings import GATEWAY_PREFIX

MIN_POSTGRESQL: Final = 12
"""The first version that has all of our sessions' settings."""
_DENIED: Final = "42501"
_RIGHTS: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")


def check_file(path: Path) -> None:
    """Checks that a file of SQLite, or a new one, can be written; creates its folder.

    Raises:
        InvalidInputError: it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(f"cannot create the folder of {path}: {error.strerror}") from None
    # Unlike those of `Path`, these do not raise below a folder that this user may not search.
    if os.path.isdir(path):  # noqa: PTH112
        raise _refused(f"{path} is a folder; name a file in it")
    # SQLite makes further files beside it.
    for each in (path, path.parent) if os.path.exists(path) else (path.parent,):  # noqa: PTH110
        if not os.access(each, os.W_OK | (os.X_OK if each == path.parent else 0)):
            raise _refused(f"{each} cannot be written; change its owner or mode, or name another file")


def check_server(engine: Engine, *, is_current: bool, migrates: bool) -> str:
    """Checks a database of PostgreSQL; returns what it is, in a few words.

    Args:
        engine: connects to it.
        is_current: whether the tables are as they should be; only then is it checked that they may be used.
        migrates: whether this process creates or changes them otherwise.

    Raises:
        InvalidInputError: the database cannot be used as it is; says what to change.
        DBAPIError: it does not answer.
    """
    with engine.connect() as connection:
        version = int((connection.dialect.server_version_info or (0,))[0])
        encoding, schema, user = _one(
            connection, "SELECT current_setting('server_encoding'), current_schema(), current_user"
        )
        if version < MIN_POSTGRESQL:
            raise _refused(f"is PostgreSQL {version}; {MIN_POSTGRESQL} or later is needed")
        if encoding != "UTF8":
            raise _refused(
                f"has the encoding {encoding}, which cannot hold every prompt; create the database with "
                "ENCODING 'UTF8' TEMPLATE template0"
            )
        if schema is None:
            raise _refused(
                f"permission denied: {user} may use none of its schemas; GRANT USAGE ON SCHEMA public TO {user}"
            )
        if is_current:
            _check_rights(connection, user, schema)
        elif migrates:
            (may,) = _one(connection, "SELECT has_schema_privilege(current_schema(), 'CREATE')")
            if not may:
                raise _refused(
                    f"permission denied: {user} may not create tables in the schema {schema}; make {user} the owner of "
                    f"the database, or GRANT CREATE ON SCHEMA {schema} TO {user}"
                )
    return f"PostgreSQL {version}"


@contextmanager
def explained() -> Iterator[None]:
    """Raises `InvalidInputError` for errors of the database in the block that waiting does not mend."""
    try:
        yield
    except DBAPIError as error:
        cause: Any = error.orig
        if getattr(cause, "sqlstate", None) == _DENIED:
            raise _refused(
                f"{' '.join(str(cause).split())}; grant its user the rights on all tables"
            ) from error
        if (
            isinstance(cause, sqlite3.Error)
            and getattr(cause, "sqlite_errorcode", 0) == sqlite3.SQLITE_NOTADB
        ):
            raise _refused("is no file of SQLite; name another file") from error
        raise


def _check_rights(connection: Connection, user: str, schema: str) -> None:
    for table in METADATA.sorted_tables:
        for right in _RIGHTS:
            query = "SELECT has_table_privilege(to_regclass(:table), :right)"
            (may,) = _one(connection, query, table=table.name, right=right)
            if may is False:  # None for a table that a newer gateway has removed.
                raise _refused(
                    f"permission denied: {user} may not {right} in {table.name}; "
                    f"GRANT {', '.join(_RIGHTS)} ON ALL TABLES IN SCHEMA {schema} TO {user}"
                )


def _one(connection: Connection, query: str, **values: str) -> tuple[Any, ...]:
    return tuple(connection.execute(text(query), values).one())


def _refused(problem: str) -> InvalidInputError:
    return InvalidInputError(f"{GATEWAY_PREFIX}DATABASE", problem)
