"""A database that version 0.1.0 has left is read, and its jobs go on.

`tests/data/databases/0001.json` holds the rows and objects of five jobs as version 0.1.0 wrote them: one succeeded, one
failed, one cancelled, one running with one of its two chunks finished, and one queued; and the message for the chunk
that was still to be generated.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest
import sqlalchemy
from alembic import command

from harness.gateway import GatewayHarness, MakeGateway, failure, finish_chunk
from harness.paths import SAMPLES
from smalti.errors import InvalidInputError
from smalti.messages import GenerateTask, parse
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.schema import configuration

REVISION = "0001"
OLD: Mapping[str, Any] = json.loads((SAMPLES / "databases" / f"{REVISION}.json").read_text())
IDS: Mapping[str, str] = OLD["ids"]


def value_of(column: sqlalchemy.Column[Any], value: Any) -> Any:
    """Returns a value of the file as the column takes it; SQLite kept JSON as text and booleans as numbers."""
    if value is None:
        return None
    if isinstance(column.type, sqlalchemy.JSON):
        return json.loads(value)
    if isinstance(column.type, sqlalchemy.Boolean):
        return bool(value)
    return base64.b64decode(value["base64"]) if isinstance(value, dict) else value


def fill(database: Database) -> None:
    """Brings an empty database to the old schema, and puts the old rows into it."""
    with database.engine.connect() as connection:
        config = configuration(connection)
        command.downgrade(config, "base")
        command.upgrade(config, REVISION)
        metadata = sqlalchemy.MetaData()
        metadata.reflect(connection)
        for table in metadata.sorted_tables:
            if table.name == "alembic_version":
                continue
            rows = OLD["tables"][table.name]
            if rows:
                values = [{name: value_of(table.c[name], row[name]) for name in row} for row in rows]
                connection.execute(table.insert(), values)
        connection.commit()


@pytest.fixture
def old(database: Database, make_gateway: MakeGateway) -> GatewayHarness:
    """A gateway on the old database, after its migration, with the old objects in its store."""
    fill(database)
    database.migrate()
    gateway = make_gateway()
    gateway.clock.advance(OLD["clock"] - gateway.clock())
    for key, content in OLD["objects"].items():
        gateway.store.put(key, base64.b64decode(content))
    return gateway


def test_old_jobs_are_what_they_were(old: GatewayHarness) -> None:
    assert {name: old.state(job) for name, job in IDS.items()} == {
        "succeeded": "succeeded",
        "failed": "failed",
        "cancelled": "cancelled",
        "running": "running",
        "queued": "queued",
    }
    succeeded = old.get(IDS["succeeded"])
    assert [picture.candidate for picture in succeeded.pictures] == [7, 6, 5]
    assert succeeded.job.labels == {"set": "old"}
    error = failure(old.get(IDS["failed"]))
    assert isinstance(error, InvalidInputError)
    assert "the prompt cannot be drawn" in str(error)


def test_old_jobs_go_on_to_their_end(old: GatewayHarness) -> None:
    (waiting,) = (parse(text, now=OLD["clock"]) for text in OLD["messages"])
    assert isinstance(waiting, GenerateTask)
    old.handle(finish_chunk(old, waiting))
    running = old.get(IDS["running"])
    assert running.job.state.value == "succeeded"
    assert [picture.candidate for picture in running.pictures] == [7, 6, 5]
    old.run_jobs()
    assert old.state(IDS["queued"]) == "succeeded"


def test_old_jobs_are_removed_when_their_time_has_come(old: GatewayHarness) -> None:
    old.pass_time(10_000)
    old.pass_time(10_000)
    assert [key for key in old.objects() if not key.endswith("cancelled.json")] == []
