"""Connection to the database: transactions, migrations, and the translation of errors."""

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
import sqlalchemy
from opentelemetry.trace import SpanKind
from sqlalchemy import Connection, Engine, Executable, NullPool, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from smalti.errors import DatabaseUnavailableError, InvalidInputError
from smalti.services.gateway.database import examination, schema
from smalti.services.gateway.database.commit import commit
from smalti.services.gateway.database.deadlines import ConnectionDeadlines, within
from smalti.services.gateway.database.encryption import with_tls
from smalti.services.gateway.database.failures import drop_read_only, unavailable
from smalti.services.gateway.settings import GATEWAY_PREFIX
from smalti.telemetry import tracing

log = logging.getLogger(__name__)

FORMS: Final = "sqlite:////FOLDER/FILE or postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
CONNECTIONS: Final = 24
"""Maximum size of the connection pool."""
RETRY_SECONDS: Final = 1.0
WRITE: Final = "smalti_write"
"""Execution option that marks the connections of writing transactions."""
STATEMENT_LIMIT: Final = 4.0
"""Times the timeout that a statement, and a transaction of the background, may take."""
IDLE_LIMIT: Final = 2.0
"""Times the timeout after which the server ends a transaction whose gateway is silent, and frees its locks."""
AWAY_LIMIT: Final = 2.0
"""Times the timeout without an answer after which the database is away."""
MIN_AWAY_SECONDS: Final = 3.0

Observe = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class DatabaseState:
    """What a database is, and what a migration would do."""

    found: str
    """What it is, in a few words."""
    revision: str | None
    """Its schema; None without tables."""
    is_current: bool
    """Whether this version can use it as it is."""
    pending: tuple[schema.Step, ...] = ()
    """The steps to the wanted schema."""

    @property
    def behind(self) -> str:
        """What is to be done about a schema that is behind, in a few words."""
        what = "has no tables" if self.revision is None else f"has schema {self.revision}"
        return f"{what}, and this version needs {self.pending[-1].revision}; run smalti migrate"


class Database:
    """The jobs' database; thread-safe, and every call blocks.

    SQLite has one writer at a time. A writing transaction takes the write lock when it begins (BEGIN IMMEDIATE), since
    a later upgrade of a read lock can only fail. The threads of this process queue for the lock in Python, since
    SQLite would let them sleep and poll. PostgreSQL locks rows.
    """

    def __init__(
        self, url: str, *, timeout: float = 5.0, observe: Observe = lambda op, seconds: None
    ) -> None:
        """Connects on first use.

        Args:
            url: the address, in one of `FORMS`.
            timeout: seconds for which a transaction waits for a lock or a connection before it fails.
            observe: called for every transaction with "read" or "write" and its duration in seconds, waiting included.

        Raises:
            InvalidInputError: the address is invalid; the message never contains the password.
        """
        self.timeout = timeout
        self.id = str(uuid.uuid4())
        """Tells this gateway from the others that share the database."""
        self._observe = observe
        self._url = _checked(url)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        self._writing = threading.Lock()
        self._answered = time.monotonic()
        self.engine = self._make_engine()
        self._deadlines = (
            None if self.is_sqlite else ConnectionDeadlines(self.engine, STATEMENT_LIMIT * timeout)
        )
        self._writer = self.engine.execution_options(**{WRITE: True})
        self._alone = self.engine.execution_options(isolation_level="AUTOCOMMIT")

    def migrate(self, limits: schema.Limits | None = None, to: str = "") -> str:
        """Creates the tables, or migrates them to the current version, step by step; returns what it found.

        It uses a connection of its own, which is closed whatever happens: nothing that a migration has locked or set
        outlives it. When several processes migrate together, one does it and the others wait.

        Args:
            limits: how long it may keep others waiting, and what it reports.
            to: the schema to make; empty for the newest that this version knows.

        Raises:
            DatabaseUnavailableError: the database does not answer, or the tables are in use; try again.
            InvalidInputError: the database cannot be used as it is; says what to change.
        """
        engine = self._make_engine(migrating=limits or schema.Limits())
        try:
            with self._turn(), self._translated(), examination.explained():
                current, found = self._found(engine, migrates=True)
                if not current:  # Needs no lock otherwise, which a busy database might refuse.
                    schema.upgrade(engine.execution_options(**{WRITE: True}).begin, limits, to)
                return found
        finally:
            engine.dispose()

    def examine(self, to: str = "", *, migrates: bool = False) -> DatabaseState:
        """Returns what the database is; changes nothing.

        Args:
            to: the wanted schema; empty for the newest that this version knows.
            migrates: whether this process is to migrate it, so that its user must have the right.

        Raises:
            InvalidInputError: the database cannot be used as it is; says what to change.
            DatabaseUnavailableError: the database does not answer.
        """
        if self.is_sqlite and not os.path.exists(self._url.database or ""):  # noqa: PTH110
            steps = tuple(schema.pending(None, to))
            return DatabaseState(
                found=f"SQLite in the new file {self._url.database}",
                revision=None,
                is_current=False,
                pending=steps,
            )
        engine = self._make_engine(migrating=schema.Limits())
        try:
            with self._translated(), examination.explained():
                is_current, found = self._found(engine, migrates=migrates)
                with engine.connect() as connection:
                    revision = schema.current(connection)
                return DatabaseState(
                    found=found,
                    revision=revision,
                    is_current=is_current,
                    pending=tuple(schema.pending(revision, to)),
                )
        finally:
            engine.dispose()

    def _found(self, engine: Engine, *, migrates: bool) -> tuple[bool, str]:
        """Returns whether there is nothing to migrate, and what the database is in a few words; see `examine`."""
        current = schema.is_current(engine)
        if self.is_sqlite:
            return current, "SQLite"
        return current, examination.check_server(engine, is_current=current, migrates=migrates)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Opens a read-only transaction.

        Raises:
            DatabaseUnavailableError: the database does not answer.
        """
        with self._timed("read"), self._translated(), Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Opens a writing transaction, which commits when the block ends and rolls back when the block raises.

        The block must be short and must wait for nothing but the database. What is to be done at the commit is done
        then; see `smalti.services.gateway.database.commit`.

        Raises:
            DatabaseUnavailableError: the database does not answer in time or cannot write; nothing was changed. If the
                connection breaks during the commit, the transaction may be committed nevertheless.
        """
        with (
            self._timed("write"),
            self._turn(),
            self._translated(),
            Session(self._writer, expire_on_commit=False) as session,
        ):
            yield session
            session.flush()
            commit(session, self.id)

    def execute(self, statement: Executable, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """Runs one statement as a transaction of its own, without round trips to begin and to commit; for PostgreSQL.

        Returns:
            The row that it has found; None if it has found none.

        Raises:
            DatabaseUnavailableError: as in `write`.
        """
        with self._timed("write"), self._translated(), self._alone.connect() as connection:
            row = connection.execute(statement, values).one_or_none()
            return None if row is None else tuple(row)

    @contextmanager
    def own_connection(self) -> Iterator[psycopg.Connection[Any]]:
        """Opens a connection to PostgreSQL that is nobody else's, without transactions; closes it after the block.

        Raises:
            DBAPIError: the database does not answer.
        """
        engine = self._make_engine(pooled=False)
        connection = engine.raw_connection()
        driver: Any = connection.driver_connection
        connection.detach()
        driver.autocommit = True
        try:
            yield driver
        finally:
            driver.close()
            engine.dispose()

    def close(self) -> None:
        """Closes the connections."""
        if self._deadlines is not None:
            self._deadlines.close()
        self.engine.dispose()

    def time(self) -> float:
        """Asks the database for the time in seconds since 1970; SQLite has this machine's.

        It is a sign of life too.

        Raises:
            DatabaseUnavailableError: the database does not answer in time.
        """
        now = "1" if self.is_sqlite else "extract(epoch FROM clock_timestamp())"
        with within(self.timeout), self.read() as session:
            answer = float(session.scalar(sqlalchemy.text(f"SELECT {now}")) or 0)
        return time.time() if self.is_sqlite else answer

    @property
    def answers(self) -> bool:
        """Whether the database has answered lately. Somebody must call `time` every second or so."""
        return time.monotonic() - self._answered < max(MIN_AWAY_SECONDS, AWAY_LIMIT * self.timeout)

    @contextmanager
    def _timed(self, op: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            with tracing.inner_span(f"{op} database", SpanKind.CLIENT, {"db.system.name": self.engine.name}):
                yield
            self._answered = time.monotonic()
        finally:
            self._observe(op, time.monotonic() - began)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self.is_sqlite:
            yield
            return
        if not self._writing.acquire(timeout=self.timeout):
            raise DatabaseUnavailableError(
                f"the database was busy for {self.timeout:g} s; try again", RETRY_SECONDS
            )
        try:
            yield
        finally:
            self._writing.release()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, PoolTimeoutError) as error:
            problem = unavailable(error) if isinstance(error, DBAPIError) else "the database does not answer"
            if problem is None:
                raise
            log.warning("database error: %s", describe(error))
            raise DatabaseUnavailableError(f"{problem}; try again", RETRY_SECONDS) from error

    def _make_engine(self, *, migrating: schema.Limits | None = None, pooled: bool = True) -> Engine:
        if self.is_sqlite:
            file = self._url.database
            if file and file != ":memory:":
                examination.check_file(Path(file))
            arguments: dict[str, Any] = {"timeout": migrating.lock if migrating else self.timeout}
        else:
            arguments = _postgres_arguments(self.timeout, migrating=migrating)
        if migrating or not pooled:
            engine = sqlalchemy.create_engine(self._url, connect_args=arguments, poolclass=NullPool)
        else:
            engine = sqlalchemy.create_engine(
                self._url,
                connect_args=arguments,
                pool_size=CONNECTIONS // 2,
                max_overflow=CONNECTIONS // 2,
                pool_timeout=self.timeout,
            )
        if self.is_sqlite:
            event.listen(engine, "connect", _prepare_migration if migrating else _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        else:
            event.listen(engine, "handle_error", drop_read_only)
        return engine


def describe(error: BaseException) -> str:
    """Returns what the driver says, in one line."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return " ".join(str(cause).split()) or type(cause).__name__


def _postgres_arguments(timeout: float, *, migrating: schema.Limits | None) -> dict[str, Any]:
    """Returns arguments of libpq, and settings of the server's session; see `docs/jobs.md` for what they are for."""
    idle = max(1, round(timeout))
    lost = round(IDLE_LIMIT * timeout * 1000)
    server = {
        "lock_timeout": round(1000 * (migrating.lock if migrating else timeout)),
        # A migration of a large table may take long, and must not be given up halfway.
        "statement_timeout": round(1000 * (migrating.statement if migrating else STATEMENT_LIMIT * timeout)),
        "idle_in_transaction_session_timeout": lost,
        "tcp_keepalives_idle": idle,
        "tcp_keepalives_interval": 1,
        "tcp_keepalives_count": idle,
        "tcp_user_timeout": lost,
    }
    return {
        "connect_timeout": max(1, round(timeout)),
        # With the encoding of a database in SQL_ASCII, the driver would return bytes.
        "client_encoding": "utf8",
        "options": " ".join(f"-c {name}={value}" for name, value in server.items()),
        # With several addresses, the primary is found; a standby alone is refused.
        "target_session_attrs": "read-write",
        "keepalives": 1,
        "keepalives_idle": idle,
        "keepalives_interval": 1,
        "keepalives_count": idle,
        "tcp_user_timeout": lost,
    }


def _checked(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    backend = parsed.get_backend_name() if parsed is not None and _is_known(parsed) else ""
    if parsed is None or backend not in ("sqlite", "postgresql") or not parsed.database:
        raise InvalidInputError(f"{GATEWAY_PREFIX}DATABASE", f"must have the form {FORMS}")
    if backend == "postgresql":
        return with_tls(parsed.set(drivername="postgresql+psycopg"))
    return parsed


def _is_known(url: URL) -> bool:
    try:
        url.get_dialect()
    except (NoSuchModuleError, ImportError):
        return url.drivername.startswith("postgresql")
    return True


def _prepare_sqlite(connection: Any, record: object) -> None:
    # Without this the driver begins transactions by itself.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _prepare_migration(connection: Any, record: object) -> None:
    _prepare_sqlite(connection, record)
    # A migration that copies a table drops the old one, which would delete the rows that refer to it.
    connection.execute("PRAGMA foreign_keys=OFF")


def _begin_sqlite(connection: Connection) -> None:
    immediate = connection.get_execution_options().get(WRITE)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
