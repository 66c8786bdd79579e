"""This gateway among the others that share a database: who is alive, who does what one of them does, and news.

On PostgreSQL a gateway has a connection of its own for that. The server ends it when the process dies, is cut off, or
is suspended, and with it the advisory locks that say that the gateway is alive and which roles it has. So the others
know it at once. On SQLite there is one gateway, and nothing to do.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final
from uuid import UUID

import psycopg
from sqlalchemy.exc import DBAPIError

from smalti import __version__
from smalti.services.gateway.database import schema
from smalti.services.gateway.database.commit import CHANNEL
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.deadlines import break_connection

log = logging.getLogger(__name__)

BEAT_SECONDS: Final = 1.0
"""Interval between signs of life, and between tries to get a role that another gateway has."""
SILENT_SECONDS: Final = 10.0
"""Time after which the server ends the connection of a gateway that is silent, such as one that is suspended."""
ALONE_SECONDS: Final = 30.0
"""Time without the connection after which a gateway does what its roles would be: twice is better than not at all."""
MIN_IDLE_TIMEOUT: Final = 140_000
"""First version of the server that ends silent sessions. Before, all gateways have all roles, since a suspended one
would keep its own."""

_ALIVE: Final = 0x534D4147
_ROLES: Final = _ALIVE + 1
"""First keys of the advisory locks; the second is the number of the gateway, or the role."""

_BEAT: Final = """
INSERT INTO gateways (id, number, address, version, oldest_schema, newest_schema, seen_at)
VALUES (%(id)s, %(number)s, %(address)s, %(version)s, %(oldest)s, %(newest)s,
        (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at
"""
_BURY: Final = """
WITH alive AS (
    SELECT objid::bigint AS number FROM pg_locks
    WHERE locktype = 'advisory' AND classid::bigint = %(alive)s AND objsubid = 2 AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
), dead AS (
    DELETE FROM gateways WHERE number NOT IN (SELECT number FROM alive) RETURNING id, address
), freed AS (
    UPDATE chunks SET deadline = 0 FROM dead
    WHERE chunks.state = 'leased' AND NOT chunks.sent AND chunks.owner = dead.id RETURNING 1
)
SELECT (SELECT count(*) FROM freed), array(SELECT address FROM dead), array(SELECT id FROM dead),
    (SELECT count(*) FROM gateways)
"""
_FREE_CLAIMS: Final = """
WITH questions AS (
    UPDATE jobs SET asked_until = NULL, asked_by = NULL
    WHERE jobs.state IN ('queued', 'running') AND jobs.asked_by = ANY(%(dead)s)
), batches_of_dead AS (
    UPDATE batches SET owned_until = NULL, owner = NULL
    WHERE batches.state IN ('planning', 'running', 'paused', 'finishing') AND batches.owner = ANY(%(dead)s)
), shards_of_dead AS (
    UPDATE shards SET deadline = 0
    WHERE shards.state = 'leased' AND NOT shards.sent AND shards.owner = ANY(%(dead)s)
)
UPDATE chores SET due = 0, owner = NULL WHERE chores.owner = ANY(%(dead)s)
"""


class Role(IntEnum):
    """What one gateway at a time does for all. Two that do it for a moment do no harm, since they lock rows."""

    SWEEPING = 1
    """Expires, finishes and removes jobs, and checks the counters of tenants."""
    STORE_TASKS = 2
    """Runs the pending tasks in the object store."""
    EXPIRING = 3
    """Deletes old objects where the store does not."""
    WEBHOOKS = 4
    """Sends notices to webhooks."""
    SHARDS = 5
    """Sends the shards of batches."""

    @property
    def label(self) -> str:
        """Its name in logs and metrics."""
        return self.name.lower().replace("_", " ")


def _ignore(*arguments: object) -> None:
    pass


@dataclass
class News:
    """What is called, in the thread of the connection, when something happens; must not block."""

    changed: Callable[[str], None] = _ignore
    """Another gateway has changed a job; takes its id."""
    freed: Callable[[int], None] = _ignore
    """So many chunks were leased by a gateway that is dead, and are free."""
    gained: Callable[[Role], None] = _ignore
    """This gateway has a role that it did not have."""


class Presence:
    """Keeps the connection in a thread, from `start` to `stop`; thread-safe."""

    def __init__(
        self,
        database: Database,
        *,
        address: str = "",
        beat: float = BEAT_SECONDS,
        silent: float = SILENT_SECONDS,
    ) -> None:
        """Connects to nothing before `start`.

        Args:
            database: the database that the gateways share.
            address: where the gateway answers calls, for people who read the table of gateways.
            beat: seconds between two signs of life.
            silent: seconds without one after which the server ends the connection.
        """
        self.news = News()
        self.others = 0
        """Number of other gateways that were alive at the last look."""
        self._database = database
        self._address = address[:255]
        self._beat_seconds, self._silent_seconds = beat, silent
        self._number = UUID(database.id).int & 0x7FFFFFFF
        self._roles: frozenset[Role] = frozenset()
        self._connections = 0
        self._listening = False
        self._away_since = time.monotonic()
        self._stopped = threading.Event()
        self._driver: psycopg.Connection[Any] | None = None
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)
        self._started = False

    @property
    def alive(self) -> bool:
        """Whether the thread runs; always on SQLite, where there is none."""
        return self._database.is_sqlite or self._thread.is_alive()

    @property
    def listening(self) -> int:
        """The number of the connection over which changes are received now; 0 if they are not."""
        return self._connections if self._listening else 0

    def holds(self, role: Role) -> bool:
        """Returns whether this gateway does what a role stands for; before `start` it does everything."""
        if self._database.is_sqlite or not self._started or role in self._roles:
            return True
        return not self._listening and time.monotonic() - self._away_since > ALONE_SECONDS

    def start(self) -> None:
        """Starts the thread."""
        if self._database.is_sqlite:
            return
        self._started = True
        self._away_since = time.monotonic()
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Ends the connection, so that the other gateways know at once that this one has ended."""
        self._stopped.set()
        if driver := self._driver:
            break_connection(driver)
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                with self._database.own_connection() as driver:
                    self._driver = driver
                    self._serve(driver)
            except (psycopg.Error, DBAPIError) as error:
                if not self._stopped.is_set():
                    log.warning(
                        "the connection to the other gateways is lost: %s", " ".join(str(error).split())
                    )
            except Exception:
                log.exception("the connection to the other gateways has failed")
            finally:
                self._driver = None
                if self._listening:
                    self._away_since = time.monotonic()
                self._listening, self._roles = False, frozenset()
            self._stopped.wait(BEAT_SECONDS)

    def _serve(self, driver: psycopg.Connection[Any]) -> None:
        ends_silent = driver.info.server_version >= MIN_IDLE_TIMEOUT
        if ends_silent:
            driver.execute(f"SET idle_session_timeout = {round(1000 * self._silent_seconds)}")
        driver.execute("SELECT pg_advisory_lock(%s, %s)", (_ALIVE, self._number))
        driver.execute(f"LISTEN {CHANNEL}")
        self._connections += 1
        self._listening = True
        while not self._stopped.is_set():
            self._beat(driver, ends_silent=ends_silent)
            for notice in driver.notifies(timeout=self._beat_seconds):
                sender, _, job_id = notice.payload.partition(" ")
                if sender != self._database.id:
                    self.news.changed(job_id)

    def _beat(self, driver: psycopg.Connection[Any], *, ends_silent: bool) -> None:
        oldest, newest = schema.known_range()
        driver.execute(
            _BEAT,
            {
                "id": self._database.id,
                "number": self._number,
                "address": self._address,
                "version": __version__[:64],
                "oldest": oldest,
                "newest": newest,
            },
        )
        row = driver.execute(_BURY, {"alive": _ALIVE}).fetchone()
        freed, addresses, dead, known = row or (0, [], [], 1)
        self.others = known - len(dead) - 1
        if dead:
            driver.execute(_FREE_CLAIMS, {"dead": dead})
        for address in addresses:
            log.info("the gateway at %s has ended", address)
        if freed:
            log.warning("%d chunks that a gateway was sending when it ended are sent again", freed)
            self.news.freed(freed)
        for role in set(Role) - self._roles:
            query = "SELECT pg_try_advisory_lock(%s, %s)"
            if not ends_silent or _one(driver.execute(query, (_ROLES, int(role)))):
                self._roles |= {role}
                log.info("this gateway has the role %s", role.label)
                self.news.gained(role)


def _one(cursor: psycopg.Cursor[Any]) -> Any:
    row = cursor.fetchone()
    return row[0] if row else None
