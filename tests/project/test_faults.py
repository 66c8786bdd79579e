"""The short fault matrix, on each kind of broker and database; `make faults` runs the whole matrix."""

import ast
import os
import re
from pathlib import Path

import pytest

from faults.command import choose, main
from faults.matrix import Result, Row
from faults.rows import ROWS, short, versions
from faults.rows.batches.short import SHORT as BATCHES
from faults.rows.short import SHORT
from faults.running import Runner
from harness.paths import TESTS
from harness.servers import PostgresServer, RabbitMQServer

PAGE = (TESTS.parent / "docs" / "faults.md").read_text(encoding="utf-8")
# On a machine without RabbitMQ and PostgreSQL their tests are left out; in CI they fail instead.
DEBIAN = (RabbitMQServer.installed() and PostgresServer.programs() is not None) or "CI" in os.environ
KILLED = (short.workers, short.gateway)
"""The rows for `make test`. The broker, duplicates, damaged objects and cancelled jobs have tests of their own."""
VERSIONS = (versions.old_gateway, versions.old_workers, versions.together, versions.update)
KINDS = [
    pytest.param("valkey", "sqlite", 1, KILLED, id="killed"),
    pytest.param("valkey", "sqlite", 1, SHORT, id="valkey-sqlite", marks=pytest.mark.slow),
    pytest.param("valkey", "sqlite", 1, BATCHES, id="batches-valkey-sqlite", marks=pytest.mark.slow),
    pytest.param("valkey", "sqlite", 1, VERSIONS, id="versions-valkey-sqlite", marks=pytest.mark.slow),
    *(
        [
            pytest.param("rabbitmq", "postgres", 1, SHORT, id="rabbitmq-postgres", marks=pytest.mark.slow),
            pytest.param("rabbitmq", "postgres", 2, SHORT, id="two-gateways", marks=pytest.mark.slow),
            pytest.param(
                "rabbitmq", "postgres", 2, BATCHES, id="batches-two-gateways", marks=pytest.mark.slow
            ),
            pytest.param("rabbitmq", "postgres", 2, VERSIONS, id="versions", marks=pytest.mark.slow),
        ]
        if DEBIAN
        else []
    ),
]


def troubles(result: Result) -> list[str]:
    """Returns what is wrong with the result of a row."""
    tally = result.tally
    lost = [f"{tally.states['lost']} jobs are lost"] * bool(tally.states["lost"])
    return [*result.problems, *lost, *tally.unexpected, *tally.wrong]


# One test for all rows of a kind: they share one system, whose start takes longer than they do.
@pytest.mark.server
@pytest.mark.parametrize(("broker", "database", "gateways", "rows"), KINDS)
def test_no_fault_loses_a_job_or_makes_a_wrong_picture(
    broker: str, database: str, gateways: int, rows: tuple[Row, ...], tmp_path: Path
) -> None:
    runner = Runner(
        tmp_path, broker=broker, database=database, gateways=gateways, jobs=4, long=False, say=print
    )
    try:
        results = runner.run(rows)
    finally:
        runner.close()
    names = [row.name for row in rows if row.concerns(broker, database, gateways)]
    assert {result.row.name: troubles(result) for result in results} == {name: [] for name in names}
    assert all(result.tally.accepted for result in results)


def test_page_has_every_row() -> None:
    listed = re.findall(r"^\| (\d+|gateway) \|", PAGE.partition("## The latest result")[0], re.MULTILINE)
    assert listed == list(dict.fromkeys(name.partition(" ")[0] for name in ROWS))


def test_tests_of_the_guarantees_exist() -> None:
    guarantees = PAGE.partition("## Guarantees and their tests")[2].partition("##")[0]
    named = 0
    for file, names in re.findall(r"`([\w/]*test_\w+\.py)`(?:: ((?:`test_\w+`(?:, )?)+))?", guarantees):
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        there = {
            node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        wanted = set(re.findall(r"test_\w+", names))
        assert wanted <= there
        named += len(wanted)
    assert named >= 20


def test_rows_are_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert [row.name for row in choose("8, 2")] == ["2", "8", "8 signed"]
    assert choose("") == list(ROWS.values())
    assert main(["--rows", "99"]) == 2
    assert "--rows: '99' must be one of 1, 2, 3" in capsys.readouterr().err
    assert main(["--broker", "none"]) == 2
    assert main(["--gateways", "2"]) == 2
    assert "--gateways: several gateways need --database postgres" in capsys.readouterr().err
