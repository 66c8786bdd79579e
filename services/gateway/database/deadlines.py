"""Breaks connections whose transactions outlast their deadline.

The limits of PostgreSQL (`statement_timeout`, `lock_timeout`) are the server's, and a server that hangs does not keep
them. Then the thread that waits is freed by closing its socket.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Final

import psycopg
from sqlalchemy import Engine, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

log = logging.getLogger(__name__)

GRACE_SECONDS: Final = 1.0
"""Time by which a connection may outlast its deadline, since the server's own limits end a call more gently."""

_USED: Final = "smalti_used"
"""Key in the information of a pooled connection that has been used before."""

_deadline: ContextVar[float | None] = ContextVar("database_deadline", default=None)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Sets the time limit of all transactions that this block and the threads with its context run."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


class ConnectionDeadlines:
    """Breaks pooled connections of PostgreSQL at their deadlines, in a thread of its own."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        """Watches the connections of an engine.

        Args:
            engine: its pool must not ping connections itself, since a ping may hang too.
            seconds: time limit of a transaction for which `within` has set none.
        """
        self._dialect = engine.dialect
        self._seconds = seconds
        self._changed = threading.Condition()
        self._lent: dict[int, tuple[float, Any]] = {}
        self._closed = False
        self._thread: threading.Thread | None = None
        event.listen(engine, "checkout", self._checkout)
        event.listen(engine, "checkin", self._checkin)

    def close(self) -> None:
        """Ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _checkout(self, connection: Any, record: Any, proxy: object) -> None:
        asked, now = _deadline.get(), time.monotonic()
        if asked is not None and asked <= now:
            raise PoolTimeoutError("the time limit of the call is over")
        deadline = now + self._seconds if asked is None else min(asked + GRACE_SECONDS, now + self._seconds)
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="database deadlines", daemon=True)
                self._thread.start()
            self._lent[id(record)] = (deadline, connection)
            self._changed.notify()
        if not record.info.setdefault(_USED, False):
            record.info[_USED] = True  # It is new, and was connected a moment ago.
            return
        try:
            self._dialect.do_ping(connection)
        except psycopg.Error as error:
            raise DisconnectionError(str(error)) from error  # The pool tries a new connection.

    def _checkin(self, connection: object, record: Any) -> None:
        with self._changed:
            self._lent.pop(id(record), None)

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                for key, (deadline, connection) in list(self._lent.items()):
                    if deadline <= now:
                        del self._lent[key]
                        log.warning("the database has not answered in time; its connection is closed")
                        break_connection(connection)
                first = min((deadline for deadline, _ in self._lent.values()), default=None)
                self._changed.wait(None if first is None else max(0.0, first - now))


def break_connection(connection: Any) -> None:
    """Shuts down the socket of a connection; the thread that waits for an answer gets an error."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)
