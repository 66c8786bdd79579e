"""`smalti migrate`: step by step, alone or beside others, whatever interrupts it."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from harness.servers import PostgresServer
from harness.waiting import wait_until
from smalti.cli import run
from smalti.errors import InvalidInputError
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.opening import wait_until_migrated
from smalti.services.gateway.database.schema import known_range
from tests.services.gateway.conftest import DATABASES, needs_postgres

OLDEST, NEWEST = known_range()
STEPS = [f"{number:04}" for number in range(1, int(NEWEST) + 1)]
VARIABLE = "SMALTI_GATEWAY_DATABASE"


class Target:
    """A database without tables, for the command."""

    def __init__(self, url: str) -> None:
        self.url = url

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, VARIABLE: self.url, **more}

    def start(self, *options: str, **more: str) -> "subprocess.Popen[str]":
        """Starts the command as a process."""
        return subprocess.Popen(
            [sys.executable, "-m", "smalti.cli", "migrate", *options],
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def schema(self) -> str | None:
        """Returns its schema; None without tables."""
        with closing(Database(self.url)) as database:
            return database.examine().revision

    @contextmanager
    def locked(self, table: str) -> Iterator[None]:
        """Locks it as a backup does: a table in PostgreSQL, the whole file in SQLite."""
        if self.url.startswith("sqlite"):
            with closing(sqlite3.connect(self.url.removeprefix("sqlite:///"), isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                yield
                other.execute("ROLLBACK")
            return
        with psycopg.connect(self.url) as server:
            server.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(table)))
            yield
            server.rollback()


@pytest.fixture(params=DATABASES)
def target(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Target]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
        monkeypatch.setenv(VARIABLE, url)
        yield Target(url)
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    if not server.running:
        server.start()
    with server.new_database() as url:
        monkeypatch.setenv(VARIABLE, url)
        yield Target(url)


Lines = Callable[[], list[str]]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    """Returns the lines that were printed since the last time, on both streams."""

    def read() -> list[str]:
        printed = capsys.readouterr()
        return [*printed.out.splitlines(), *printed.err.splitlines()]

    return read


def steps(printed: list[str], what: str = "done") -> list[str]:
    """Returns the schemas of the steps that were printed, each with what it does."""
    found = [re.fullmatch(rf"(\d+) {what}(?: in \d+\.\d s)?: [A-Z].+\.", line) for line in printed]
    return [match[1] for match in found if match]


def test_each_step_is_a_line(target: Target, lines: Lines) -> None:
    assert run(["migrate", "--check"]) == 1
    printed = lines()
    assert steps(printed, "to do") == STEPS
    assert printed[-1].endswith("no tables yet: to do")
    assert run(["migrate", "--to", "0004"]) == 0
    printed = lines()
    assert steps(printed) == STEPS[:4]
    assert printed[-1].endswith("schema 0004: ready")
    assert target.schema() == "0004"
    assert run(["migrate", "--check", "--to", "0004"]) == 0
    assert lines()[-1].endswith("schema 0004: nothing to do")
    assert run(["migrate"]) == 0
    assert steps(lines()) == STEPS[4:]
    assert run(["migrate"]) == 0
    assert [each.rpartition(", ")[2] for each in lines()] == [f"schema {NEWEST}: ready"]
    assert run(["migrate", "--check"]) == 0


def test_no_step_leads_back(target: Target, lines: Lines) -> None:
    assert run(["migrate", "--to", "0005"]) == 0
    lines()
    assert run(["migrate", "--to", "0004"]) == 2
    assert lines() == [
        "smalti: --to: the database has schema 0005 already; there is no way back to 0004, and none is needed: older "
        "gateways use the newer schema"
    ]
    assert run(["migrate", "--to", "abc"]) == 2
    assert lines()[0].startswith("smalti: --to: 'abc' must be one of 0001, 0002, ")
    assert target.schema() == "0005"


def test_step_without_its_lock_is_tried_again(target: Target, lines: Lines) -> None:
    assert run(["migrate", "--to", "0007"]) == 0
    lines()
    options = ["--lock-timeout", "0.2"]
    with target.locked("jobs"):
        assert run(["migrate", *options, "--wait", "2.5"]) == 2
        refused = lines()
        assert steps(refused) == []
        assert refused[-2].startswith("smalti: trying again for up to 2.5 s: ")
        assert refused[-1].startswith(f"smalti: {VARIABLE}: ")
        assert target.schema() == "0007"
        going_on = target.start(*options, "--wait", "60")
        assert going_on.stderr is not None
        assert "trying again" in going_on.stderr.readline()
    out, _ = going_on.communicate(timeout=120)
    assert going_on.returncode == 0
    assert steps(out.splitlines()) == STEPS[7:]


@pytest.mark.process
def test_two_at_once_do_each_step_once(target: Target) -> None:
    # Each waits before its commits, so that they meet.
    slow = {"SMALTI_FAILPOINTS": "gateway.before-migrated=sleep:0.2"}
    both = [target.start("--lock-timeout", "0.5", **slow) for _ in range(2)]
    printed = []
    for each in both:
        out, err = each.communicate(timeout=120)
        assert each.returncode == 0, err
        printed += steps(out.splitlines())
        assert out.splitlines()[-1].endswith(f"schema {NEWEST}: ready")
    assert sorted(printed) == STEPS


@pytest.mark.process
def test_killed_step_leaves_nothing(target: Target) -> None:
    for step in ("0001", "0004", "0008"):
        killed = target.start(SMALTI_FAILPOINTS=f"gateway.before-migrated=kill?job={step}")
        out, _ = killed.communicate(timeout=60)
        assert killed.returncode == -signal.SIGKILL
        before = f"{int(step) - 1:04}"
        assert steps(out.splitlines())[-1:] == [before] * (before != "0000")
        assert target.schema() == (None if before == "0000" else before)
    # Nothing holds a lock.
    assert run(["migrate", "--lock-timeout", "1", "--wait", "10"]) == 0
    assert target.schema() == NEWEST


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_step_is_taken_back(target: Target, number: signal.Signals, tmp_path: Path) -> None:
    reached = tmp_path / "reached"
    slow = target.start(
        SMALTI_FAILPOINTS="gateway.before-migrated=sleep:1@1?job=0008", SMALTI_FAILPOINTS_STATE=str(reached)
    )
    wait_until(lambda: reached.exists() and any(reached.iterdir()), 60)
    slow.send_signal(number)
    out, err = slow.communicate(timeout=60)
    assert slow.returncode == 128 + number
    assert err.splitlines() == ["smalti: interrupted; every file that was written is complete"]
    assert steps(out.splitlines()) == STEPS[:7]
    assert target.schema() == "0007"
    assert run(["migrate"]) == 0


@needs_postgres
@pytest.mark.process
@pytest.mark.parametrize("target", ["postgres"], indirect=True)
def test_statement_that_waits_is_interrupted_at_once(target: Target) -> None:
    assert run(["migrate", "--to", "0007"]) == 0
    with target.locked("jobs"), psycopg.connect(target.url) as server:

        def waits() -> bool:
            found = server.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
            server.rollback()
            return found != (0,)

        waiting = target.start("--lock-timeout", "100")
        wait_until(waits, 60)
        began = time.monotonic()
        waiting.send_signal(signal.SIGINT)
        waiting.communicate(timeout=60)
        assert waiting.returncode == 130
        assert time.monotonic() - began < 30
        wait_until(lambda: not waits())
    assert target.schema() == "0007"


def test_server_that_is_away_is_one_line(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "postgresql://127.0.0.1:9/nothing")
    assert run(["migrate", "--check"]) == 2
    (line,) = lines()
    assert line.startswith(f"smalti: {VARIABLE}: ")
    assert "refused" in line


def test_gateway_that_may_not_migrate_waits_for_the_command(target: Target, tmp_path: Path) -> None:
    with closing(Database(target.url)) as database:
        with pytest.raises(
            InvalidInputError,
            match=f"^{VARIABLE}: has no tables, and this version needs {NEWEST}; run smalti migrate$",
        ):
            wait_until_migrated(database, 0)
        database.migrate(to="0009")
        with pytest.raises(
            InvalidInputError, match=f"has schema 0009, and this version needs {NEWEST}; run smalti"
        ):
            wait_until_migrated(database, 0)
        assert target.schema() == "0009"
        waiting: Any = target.start()
        assert wait_until_migrated(database, 60).endswith(", ready")
        waiting.communicate(timeout=60)
