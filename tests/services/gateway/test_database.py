"""The database of the gateway as a server that others use too, and that fails."""

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import grpc
import psycopg
import pytest
from alembic import command
from sqlalchemy import select

from harness.gateway import GatewayHarness, emptied_database
from harness.gateway_calls import create_job, get_job, served
from harness.grpc_server import asynchronous
from harness.servers import PostgresServer
from harness.waiting import wait_until
from smalti.errors import DatabaseUnavailableError, UnavailableError
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.rpc.reasons import reason_of
from smalti.services.gateway.database.clock import DatabaseClock
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.opening import migrate_when_ready
from smalti.services.gateway.database.schema import configuration
from smalti.services.gateway.database.tables import Tenant
from smalti.services.gateway.jobs.repository import JobFilter

pytestmark = pytest.mark.skipif(
    PostgresServer.programs() is None and "CI" not in os.environ, reason="PostgreSQL is not installed"
)
TIMEOUT = 1.0


@pytest.fixture
def server(postgres: PostgresServer) -> PostgresServer:
    """PostgreSQL, running."""
    if not postgres.running:
        postgres.start()
    return postgres


@pytest.fixture
def first(server: PostgresServer, tiny: ModelFolder) -> Iterator[GatewayHarness]:
    """A gateway with an empty database."""
    with emptied_database(Database(server.url, timeout=TIMEOUT)) as database:
        gateway = GatewayHarness(database, ModelSpec.load(tiny), database_timeout=TIMEOUT)
        yield gateway
        gateway.close()


@pytest.fixture
def second(server: PostgresServer, first: GatewayHarness, tiny: ModelFolder) -> Iterator[GatewayHarness]:
    """Another gateway with the same database."""
    with closing(Database(server.url, timeout=TIMEOUT)) as database:
        gateway = GatewayHarness(database, ModelSpec.load(tiny), database_timeout=TIMEOUT)
        yield gateway
        gateway.close()


@contextmanager
def locked(server: PostgresServer, table: str) -> Iterator[None]:
    """Locks a table as a backup or another migration does."""
    with psycopg.connect(server.url) as other:
        other.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield
        other.rollback()


@pytest.mark.parametrize("table", ["alembic_version", "jobs"])
def test_failed_migration_leaves_nothing_behind(
    server: PostgresServer, first: GatewayHarness, second: GatewayHarness, table: str
) -> None:
    database = second.gateway.context.database
    with first.gateway.context.database.engine.begin() as connection:
        command.downgrade(configuration(connection), "0002")
    with locked(server, table), pytest.raises(DatabaseUnavailableError, match="is locked"):
        database.migrate()
    migrate_when_ready(database, 30)
    with psycopg.connect(server.url) as other:
        assert other.execute("SELECT * FROM pg_locks WHERE locktype = 'advisory'").fetchall() == []
    for gateway in (first, second, first):
        gateway.create()


def test_current_schema_needs_no_lock(
    server: PostgresServer, first: GatewayHarness, second: GatewayHarness
) -> None:
    with locked(server, "jobs"):
        second.gateway.context.database.migrate()


def test_silent_gateway_holds_up_the_others_for_seconds(
    first: GatewayHarness, second: GatewayHarness
) -> None:
    database = first.gateway.context.database
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailableError), database.write() as session:  # noqa: PT012 - it ends the block
        session.execute(select(Tenant).with_for_update())
        assert not creates(second)
        wait_until(lambda: creates(second))
    assert time.monotonic() - began < 10
    first.create()


def test_job_does_not_end_while_its_tenant_cannot_be_counted(
    server: PostgresServer, first: GatewayHarness
) -> None:
    job = first.create()
    with psycopg.connect(server.url) as other:
        other.execute("SELECT 1 FROM tenants FOR UPDATE")
        with pytest.raises(DatabaseUnavailableError, match="is locked"):
            first.cancel(job)
        other.rollback()
    assert first.state(job) == "queued"
    first.cancel(job)
    with first.gateway.context.database.read() as session:
        assert session.scalars(select(Tenant.open_jobs)).all() == [0]


def creates(gateway: GatewayHarness) -> bool:
    """Returns whether a gateway accepts a job."""
    try:
        return bool(gateway.create())
    except DatabaseUnavailableError:
        return False


@asynchronous
async def test_calls_are_answered_in_time_while_the_database_hangs(
    server: PostgresServer, first: GatewayHarness
) -> None:
    database = first.gateway.context.database
    async with served(first) as stub:
        job = (await create_job(stub)).id
        server.pause_sessions()
        try:
            for _ in range(3):  # With the pooled connection, and with new ones.
                began = time.monotonic()
                with pytest.raises(UnavailableError, match="the database is not available"):
                    await get_job(stub, job)
                assert time.monotonic() - began < TIMEOUT + 5
            began = time.monotonic()
            with pytest.raises(DatabaseUnavailableError):
                first.gateway.sweep()  # Threads of the background are freed too.
            assert time.monotonic() - began < 4 * TIMEOUT + 5
            wait_until(lambda: not database.answers)
            assert not database.answers
        finally:
            server.resume_sessions()
        wait_until(lambda: creates(first))
        assert database.answers
        assert (await get_job(stub, job)).id == job


def test_standby_is_unavailable_until_a_primary_is_back(
    server: PostgresServer, first: GatewayHarness
) -> None:
    first.create()
    with psycopg.connect(server.url, autocommit=True) as operator:
        operator.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        operator.execute("SELECT pg_reload_conf()")
        try:
            with pytest.raises(DatabaseUnavailableError) as refused:
                wait_until(lambda: first.create() == "")
            assert reason_of(refused.value).code is grpc.StatusCode.UNAVAILABLE
        finally:
            operator.execute("SET default_transaction_read_only = off")
            operator.execute("ALTER SYSTEM RESET default_transaction_read_only")
            operator.execute("SELECT pg_reload_conf()")
    wait_until(lambda: creates(first))


def test_clocks_of_gateways_that_share_a_database_agree(
    server: PostgresServer, first: GatewayHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = first.gateway.context.database
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 150)  # This machine's clock is fast.
    clock = DatabaseClock(database.time)
    assert abs(clock() - real()) < 5
    monkeypatch.setattr(time, "time", lambda: real() - 3600)  # It is set while the gateway runs.
    assert abs(clock() - real()) < 5


def test_callers_are_not_told_where_the_database_is(server: PostgresServer, first: GatewayHarness) -> None:
    server.stop()
    try:
        with pytest.raises(DatabaseUnavailableError) as refused:
            first.jobs.page(JobFilter(), after=None, limit=1)
    finally:
        server.start()
    assert str(refused.value) == "the database does not answer; try again"
