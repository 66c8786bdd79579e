"""Faults of the database, and full disks."""

import sqlite3
import time

from faults.matrix import Trial, row
from smalti.errors import UnavailableError

LOCKED_SECONDS, SHORT_LOCKED_SECONDS = 8.0, 4.5


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
