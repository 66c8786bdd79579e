"""A database that cannot be used as it is set up is refused at the start, with what to change."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from harness.servers import PostgresServer
from harness.service_process import ServiceProcess
from smalti.errors import InvalidInputError
from smalti.registry.folder import ModelFolder
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.opening import wait_until_migrated
from tests.services.gateway.conftest import needs_postgres


@pytest.fixture
def statements(postgres: PostgresServer) -> Iterator["psycopg.Connection[tuple[object, ...]]"]:
    """A connection for statements of the database's owner; drops the database `setup` and the user `app` in the end."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("CREATE ROLE app LOGIN")
        yield connection
        connection.execute("DROP DATABASE IF EXISTS setup WITH (FORCE)")
        connection.execute("DROP ROLE app")


def refusal(postgres: PostgresServer, user: str = "postgres") -> str:
    """Migrates the database `setup` as a user; returns why it is refused, or an empty string."""
    url = f"postgresql://{user}@127.0.0.1:{postgres.port}/setup"
    with closing(Database(url)) as database:
        try:
            database.migrate()
        except InvalidInputError as error:
            return str(error).removeprefix("SMALTI_GATEWAY_DATABASE: ")
    return ""


@needs_postgres
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_encoding_that_cannot_hold_every_prompt(
    postgres: PostgresServer, statements: "psycopg.Connection[tuple[object, ...]]", encoding: str
) -> None:
    statements.execute(
        f"CREATE DATABASE setup ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    assert refusal(postgres).startswith(f"has the encoding {encoding}")


@needs_postgres
def test_rights_that_are_missing(
    postgres: PostgresServer, statements: "psycopg.Connection[tuple[object, ...]]"
) -> None:
    statements.execute("CREATE DATABASE setup")
    assert "permission denied: app may not create tables in the schema public" in refusal(postgres, "app")
    assert refusal(postgres) == ""
    # Now the tables are there, but another user owns them.
    assert "permission denied" in refusal(postgres, "app")
    with psycopg.connect(f"postgresql://postgres@127.0.0.1:{postgres.port}/setup", autocommit=True) as owner:
        owner.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO app")
        assert "permission denied: app may not INSERT in" in refusal(postgres, "app")
        owner.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app")
        assert refusal(postgres, "app") == ""
        owner.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
        assert "permission denied: app may use none of its schemas" in refusal(postgres, "app")


@needs_postgres
def test_user_who_may_not_migrate_waits_for_one_who_does(
    postgres: PostgresServer, statements: "psycopg.Connection[tuple[object, ...]]"
) -> None:
    statements.execute("CREATE DATABASE setup")
    owners, apps = (f"postgresql://{name}@127.0.0.1:{postgres.port}/setup" for name in ("postgres", "app"))
    with (
        psycopg.connect(owners, autocommit=True) as owner,
        closing(Database(owners)) as owned,
        closing(Database(apps)) as used,
    ):
        for schema in ("0009", ""):
            with pytest.raises(InvalidInputError, match=r"run smalti migrate$"):
                wait_until_migrated(used, 0)
            with pytest.raises(InvalidInputError, match="app may not create tables in the schema public"):
                used.examine(migrates=True)
            owned.migrate(to=schema)
            owner.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO app")
        with pytest.raises(InvalidInputError, match="app may not INSERT in"):
            wait_until_migrated(used, 0)


def test_file_that_is_no_database(tmp_path: Path) -> None:
    file = tmp_path / "jobs.sqlite3"
    file.write_bytes(b"not a database, but long enough for its header" * 100)
    refused = pytest.raises(InvalidInputError, match=r"^SMALTI_GATEWAY_DATABASE: is no file of SQLite")
    with closing(Database(f"sqlite:///{file}")) as database, refused:
        database.migrate()
    with pytest.raises(InvalidInputError, match=r"is a folder; name a file in it"):
        Database(f"sqlite:///{tmp_path}")
    with pytest.raises(InvalidInputError, match=r"cannot create the folder of .*: Not a directory"):
        Database(f"sqlite:///{file}/below/jobs.sqlite3")


def test_file_that_cannot_be_written() -> None:
    # Not even root can write there.
    with pytest.raises(InvalidInputError, match=r"cannot (be written|create the folder of)"):
        Database("sqlite:////proc/self/jobs.sqlite3")


def test_file_of_sqlite_is_taken(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "jobs.sqlite3").close()
    with closing(Database(f"sqlite:///{tmp_path}/jobs.sqlite3")) as database:
        database.migrate()
        database.migrate()


@needs_postgres
@pytest.mark.server
def test_gateway_ends_with_one_line_and_code_2(
    postgres: PostgresServer,
    statements: "psycopg.Connection[tuple[object, ...]]",
    tiny: ModelFolder,
    tmp_path: Path,
) -> None:
    statements.execute("CREATE DATABASE setup")
    process = ServiceProcess(
        "gateway",
        broker="redis://127.0.0.1:9/0",
        store=(tmp_path / "store").as_uri(),
        model=tiny.path,
        folder=tmp_path,
        environment={
            "SMALTI_GATEWAY_DATABASE": f"postgresql://app@127.0.0.1:{postgres.port}/setup",
            "SMALTI_LOG_LEVEL": "error",
        },
    )
    done: subprocess.CompletedProcess[str] = process.run()
    assert done.returncode == 2
    assert done.stderr.startswith(
        "smalti gateway: SMALTI_GATEWAY_DATABASE: permission denied: app may not create"
    )
    assert done.stderr.count("\n") == 1


AS_NOBODY = """
import os, sys
from pathlib import Path
from smalti.errors import InvalidInputError
from smalti.services.gateway.database.examination import check_file
from tests.services.gateway.conftest import needs_postgres
os.setuid(65534)
try:
    check_file(Path(sys.argv[1]) / "smalti.db")
except InvalidInputError as error:
    print(error)
"""


@pytest.mark.process
@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")
def test_folder_that_the_user_may_not_search_is_named(tmp_path: Path) -> None:
    for each in (tmp_path, *tmp_path.parents[:-2]):
        each.chmod(0o755)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, closed], capture_output=True, text=True, timeout=120, check=False
    )
    assert (
        done.stdout
        == f"SMALTI_GATEWAY_DATABASE: {closed} cannot be written; change its owner or mode, "
        + ("or name another file\n")
    )
