"""Connection to the database: transactions, migrations, and the translation of errors."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy
from alembic import command
from alembic.config import Config
from opentelemetry.trace import SpanKind
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from smalti.errors import DatabaseUnavailableError, InvalidInputError
from smalti.services.gateway.settings import GATEWAY_PREFIX
from smalti.telemetry import tracing

log = logging.getLogger(__name__)

FORMS: Final = "sqlite:////FOLDER/FILE or postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
CONNECTIONS: Final = 24
"""Maximum size of the connection pool."""
RETRY_SECONDS: Final = 1.0
WRITE: Final = "smalti_write"
"""Execution option that marks the connections of writing transactions."""
MIGRATIONS: Final = Path(__file__).parent / "migrations"

Observe = Callable[[str, float], None]


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
        self._observe = observe
        self._url = _checked(url)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        self._writing = threading.Lock()
        self.engine = self._make_engine()
        self._writer = self.engine.execution_options(**{WRITE: True})

    def migrate(self) -> None:
        """Creates the tables, or migrates them to the current version.

        Raises:
            DatabaseUnavailableError: the database does not answer.
        """
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with self._translated(), self.engine.connect() as connection:
            if not self.is_sqlite:
                # When several gateways start together, one migrates and the others wait.
                connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": _KEY})
                connection.commit()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            if not self.is_sqlite:
                connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), {"key": _KEY})
                connection.commit()

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

        The block must be short and must wait for nothing but the database.

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
            session.commit()

    def exclusive(self, session: Session) -> None:
        """Serializes the transactions that call this. On SQLite all writing transactions are serialized anyway."""
        if not self.is_sqlite:
            session.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _KEY})

    def close(self) -> None:
        """Closes the connections."""
        self.engine.dispose()

    @contextmanager
    def _timed(self, op: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            with tracing.inner_span(f"{op} database", SpanKind.CLIENT, {"db.system.name": self.engine.name}):
                yield
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
        except (OperationalError, InterfaceError, PoolTimeoutError) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            problem = " ".join(str(cause).split()) or type(cause).__name__
            log.warning("database error: %s", problem)
            raise DatabaseUnavailableError(
                f"the database does not answer: {problem}", RETRY_SECONDS
            ) from error

    def _make_engine(self) -> Engine:
        if self.is_sqlite:
            file = self._url.database
            if file and file != ":memory:":
                try:
                    Path(file).parent.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise InvalidInputError(
                        f"{GATEWAY_PREFIX}DATABASE", f"cannot create the folder of {file}: {error.strerror}"
                    ) from None
            arguments: dict[str, Any] = {"timeout": self.timeout}
        else:
            arguments = {
                "connect_timeout": max(1, round(self.timeout)),
                "options": f"-c lock_timeout={round(self.timeout * 1000)}"
                f" -c statement_timeout={round(self.timeout * 4000)}",
            }
        engine = sqlalchemy.create_engine(
            self._url,
            connect_args=arguments,
            pool_size=CONNECTIONS // 2,
            max_overflow=CONNECTIONS // 2,
            pool_timeout=self.timeout,
            pool_pre_ping=not self.is_sqlite,
        )
        if self.is_sqlite:
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        return engine


_KEY: Final = 0x534D414C5449
"""Key of the gateway's advisory lock in PostgreSQL."""


def migrate_when_ready(database: Database, seconds: float) -> None:
    """Migrates the database; retries while it does not answer.

    Raises:
        DatabaseUnavailableError: the database did not answer in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return database.migrate()
        except DatabaseUnavailableError:
            if time.monotonic() + RETRY_SECONDS > deadline:
                raise
            time.sleep(RETRY_SECONDS)


def _checked(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    backend = parsed.get_backend_name() if parsed is not None and _is_known(parsed) else ""
    if parsed is None or backend not in ("sqlite", "postgresql") or not parsed.database:
        raise InvalidInputError(f"{GATEWAY_PREFIX}DATABASE", f"must have the form {FORMS}")
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
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


def _begin_sqlite(connection: Connection) -> None:
    immediate = connection.get_execution_options().get(WRITE)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
