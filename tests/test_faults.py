"""The short part of the fault matrix, on every kind of broker and database; `make faults` runs all of it."""

import os
from pathlib import Path

import pytest

from faults.matrix import Result
from faults.rows.short import SHORT
from faults.running import Runner
from smalti.testing.servers import PostgresServer, RabbitMQServer

# Where RabbitMQ and PostgreSQL are not installed, CI fails, and anybody else tests what they have.
DEBIAN = (RabbitMQServer.installed() and PostgresServer.programs() is not None) or "CI" in os.environ
KINDS = [("valkey", "sqlite"), *([("rabbitmq", "postgres")] if DEBIAN else [])]


def troubles(result: Result) -> list[str]:
    """Returns what is against a row."""
    tally = result.tally
    lost = [f"{tally.states['lost']} jobs are lost"] * bool(tally.states["lost"])
    return [*result.problems, *lost, *tally.unexpected, *tally.wrong]


# One test for all rows of a kind: they have one system, whose start takes longer than they do.
@pytest.mark.parametrize(("broker", "database"), KINDS)
def test_no_fault_loses_a_job_or_makes_a_wrong_picture(broker: str, database: str, tmp_path: Path) -> None:
    runner = Runner(tmp_path, broker=broker, database=database, jobs=4, long=False, say=print)
    try:
        results = runner.run(SHORT)
    finally:
        runner.close()
    assert {result.row.name: troubles(result) for result in results} == {row.name: [] for row in SHORT}
    assert all(result.tally.accepted for result in results)
