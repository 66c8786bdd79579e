"""What the tests of the gateway share: a database of each kind, and a gateway whose threads do not run."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from harness.gateway import GatewayHarness, MakeGateway, emptied_database, sqlite_database
from harness.policy import PolicyProcess
from harness.receiver import Receiver
from harness.servers import PostgresServer
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.services.gateway.database.connection import Database

# On a machine without PostgreSQL its tests are left out; in CI they fail instead.
HAS_POSTGRES = PostgresServer.programs() is not None or "CI" in os.environ
needs_postgres = pytest.mark.skipif(not HAS_POSTGRES, reason="PostgreSQL is not installed")
DATABASES = ["sqlite", "postgres"] if HAS_POSTGRES else ["sqlite"]
any_database = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
"""For tests that wait, and whose subject the database is not: they run with one of them."""


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A gateway's database of each kind, empty."""
    if request.param == "sqlite":
        with closing(sqlite_database(tmp_path)) as opened:
            yield opened
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    if not server.running:
        server.start()
    with emptied_database(Database(server.url)) as lent:
        yield lent


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    """A SQLite database that waits only shortly for its lock."""
    with closing(sqlite_database(tmp_path, timeout=0.2)) as opened:
        yield opened


@pytest.fixture
def make_gateway(database: Database, tiny: ModelFolder) -> Iterator[MakeGateway]:
    """Makes gateways on one database."""
    made: list[GatewayHarness] = []

    def another(**settings: Any) -> GatewayHarness:
        made.append(GatewayHarness(database, ModelSpec.load(tiny), **settings))
        return made[-1]

    yield another
    for each in made:
        each.close()


@pytest.fixture
def gateway(make_gateway: MakeGateway) -> GatewayHarness:
    """A gateway whose threads do not run."""
    return make_gateway()


@pytest.fixture(scope="module")
def hook() -> Iterator[PolicyProcess]:
    """An operator's policy in a process of its own."""
    with PolicyProcess() as process:
        yield process


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver of webhooks on this machine."""
    with Receiver() as started:
        yield started


@pytest.fixture
def private(monkeypatch: pytest.MonkeyPatch) -> None:
    """Webhooks may be on this machine."""
    monkeypatch.setenv("SMALTI_WEBHOOK_PRIVATE", "1")
