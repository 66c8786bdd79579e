"""Faults of the database, and full disks."""

import sqlite3
import time
from functools import partial

from sqlalchemy import create_engine, text

from faults.layout import STAGES
from faults.matrix import Trial, row
from faults.system import PATIENCE
from harness.waiting import wait_until
from smalti.client import Client
from smalti.errors import UnavailableError
from smalti.rpc.settings import RpcSettings

LOCKED_SECONDS, SHORT_LOCKED_SECONDS = 8.0, 4.5
MAX_OUTAGE_SECONDS = 20.0
"""Seconds for which a gateway that is suspended may keep others from accepting jobs."""


@row(
    "12",
    "disk full under database, store and broker; database locked (SQLite), killed or hanging (PostgreSQL)",
    "submitting fails with UNAVAILABLE in time; the system recovers without repair",
)
def no_room(trial: Trial) -> None:
    """Submits jobs before and while the database cannot write."""
    system, account = trial.system, trial.account
    account.submit_many([f"row 12 before {number}" for number in range(trial.jobs // 2)])
    if system.postgres is None:
        _sqlite_full(trial)
        _sqlite_locked(trial)
    else:
        _postgres_away(trial)
    _others_full(trial)
    after = account.submit_many([f"row 12 after {number}" for number in range(trial.jobs // 2)])
    trial.expect_states("succeeded", *after)
    account.settle()
    for each in account.submissions:
        trial.expect(each.state in ("succeeded", "refused"), f"{each.prompt!r} is {each.state}")


def _sqlite_full(trial: Trial) -> None:
    with trial.system.disk_full(trial.system.gateway.pid):
        _expect_refusal(trial, "row 12 the disk is full")
        time.sleep(2)  # The duration of the fault.


def _sqlite_locked(trial: Trial) -> None:
    connection = sqlite3.connect(trial.system.folder / "gateway.sqlite3", timeout=30, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        _expect_refusal(trial, "row 12 the database is locked")
        time.sleep(LOCKED_SECONDS if trial.long else SHORT_LOCKED_SECONDS)
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def _postgres_away(trial: Trial) -> None:
    postgres = trial.system.postgres
    assert postgres is not None
    postgres.kill()
    _expect_refusal(trial, "row 12 the database is killed")
    postgres.start()
    postgres.pause()
    _expect_refusal(trial, "row 12 the database hangs")
    time.sleep(LOCKED_SECONDS if trial.long else SHORT_LOCKED_SECONDS)
    postgres.resume()


def _expect_refusal(trial: Trial, prompt: str) -> None:
    """Expects that a job is refused with UNAVAILABLE, and records the time."""
    began = time.monotonic()
    refused = trial.account.submit(prompt).refused
    trial.notes.append(f"{prompt.removeprefix('row 12 ')}: answered after {time.monotonic() - began:.1f} s")
    trial.expect(isinstance(refused, UnavailableError), f"{prompt!r} was answered with {refused!r}")


def _others_full(trial: Trial) -> None:
    """Fills the disks of store and broker while jobs run and others are submitted."""
    system, account = trial.system, trial.account
    # RabbitMQ monitors its disk, and blocks publishers before it is full.
    servers = (system.s3, system.broker) if system.layout.broker == "valkey" else (system.s3,)
    for server in servers:
        pid = server.pids[-1]
        account.submit_many([f"row 12 {server.name} before {number}" for number in range(trial.jobs // 4)])
        with system.disk_full(pid):
            account.submit_many([f"row 12 {server.name} full {number}" for number in range(trial.jobs // 4)])
            time.sleep(4 if trial.long else 2)  # The duration of the fault.
        # Valkey exits when it cannot write; SeaweedFS stays read-only until it is restarted.
        server.kill()
        server.start()
        account.settle()


@row(
    "12 hangs",
    "database that stops answering with all its connections",
    "calls fail with UNAVAILABLE in time; the system recovers without repair",
    database="postgres",
)
def database_hangs(trial: Trial) -> None:
    """Suspends all processes of PostgreSQL while jobs run and others are submitted."""
    postgres, account = trial.system.postgres, trial.account
    assert postgres is not None
    before = account.submit_many([f"row 12 before {number}" for number in range(trial.jobs // 2)])
    postgres.pause_sessions()
    try:
        began = time.monotonic()
        for number in range(4):
            _expect_refusal(trial, f"row 12 all of the database hangs {number}")
        trial.expect(time.monotonic() - began < PATIENCE / 2, "the refusals took too long")
        gateways = [trial.system.processes[name] for name in trial.system.gateways]
        wait_until(lambda: not any(gateway.serves() for gateway in gateways), PATIENCE)
        time.sleep(LOCKED_SECONDS if trial.long else SHORT_LOCKED_SECONDS)
    finally:
        postgres.resume_sessions()
    trial.system.wait_until_serving(*trial.system.gateways)
    after = account.submit_many([f"row 12 after {number}" for number in range(trial.jobs // 2)])
    trial.expect_states("succeeded", *before, *after)


@row(
    "12 migration",
    "migration that fails, again and again, beside a gateway that serves",
    "the other gateway accepts every job, during the migration and after it",
    services=(*STAGES, "gateway-late"),
    held=("gateway-late",),
    database="postgres",
)
def migration_fails(trial: Trial) -> None:
    """Starts another gateway on a database that it cannot migrate, then on one that needs no migration."""
    system, account = trial.system, trial.account
    assert system.postgres is not None
    engine = create_engine(system.postgres.url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        current = connection.scalar(text("SELECT version_num FROM alembic_version"))
        # Its migrations would add what is there already.
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    began, late = time.time(), system.processes["gateway-late"]
    late.held = False
    system.wait_for_end("gateway-late", since=began)
    during = account.submit_many([f"row 12 during {number}" for number in range(trial.jobs // 2)])
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :current"), {"current": current})
    engine.dispose()
    system.wait_until_serving("gateway-late")
    after = account.submit_many([f"row 12 after {number}" for number in range(trial.jobs // 2)])
    with Client(late.url, settings=RpcSettings(attempts=1)) as client:
        after.append(account.submit("row 12 by the late gateway", client=client))
    trial.expect_states("succeeded", *during, *after)


def _accepts(trial: Trial, client: Client, prompt: str) -> bool:
    return not trial.account.submit(prompt, client=client).refused


@row(
    "gateway suspended",
    "one of two gateways suspended while it accepts jobs, again and again",
    "the other accepts jobs again within seconds; nothing is lost",
    services=(*STAGES, "gateway-2"),
    database="postgres",
)
def one_gateway_suspended(trial: Trial) -> None:
    """Suspends a gateway under load, at a moment that may be in the middle of a transaction."""
    system, account = trial.system, trial.account
    second = system.processes["gateway-2"]
    longest = 0.0
    with (
        Client(second.url, retry_seconds=60, settings=RpcSettings(attempts=4)) as client,
        system.client("gateway") as first,
    ):
        for turn in range(6 if trial.long else 2):
            for number in range(trial.jobs // 4):
                account.submit(f"row gateway second {turn} {number}", client=client)
            second.pause()
            try:
                began = time.monotonic()
                wait_until(partial(_accepts, trial, first, f"row gateway first {turn}"), PATIENCE)
                longest = max(longest, time.monotonic() - began)
                time.sleep(2)  # The duration of the fault.
            finally:
                second.resume()
    trial.notes.append(f"the other gateway accepted a job after {longest:.1f} s at most")
    trial.expect(longest < MAX_OUTAGE_SECONDS, f"no job was accepted for {longest:.0f} s")
    account.settle()
    for each in account.submissions:
        trial.expect(each.state in ("succeeded", "refused"), f"{each.prompt!r} is {each.state}")
