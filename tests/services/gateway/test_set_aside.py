"""Rows that this version of the gateway cannot read stop nobody else, and are shown."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update

from harness.gateway import GatewayHarness, MakeGateway, encoded_job, finish_chunk, sqlite_database
from smalti.errors import InvalidInputError
from smalti.services.gateway.api.conversion import job_message
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import Job
from smalti.services.gateway.jobs import aside
from smalti.services.gateway.jobs.repository import JobFilter
from smalti.services.gateway.metrics import gauges
from smalti.storage import JobKeys
from smalti.v1 import job_pb2


def write_row(gateway: GatewayHarness, job: str, **values: Any) -> None:
    """Changes the row of a job."""
    with gateway.gateway.context.database.write() as session:
        session.execute(update(Job).where(Job.id == job).values(**values))


def stored(gateway: GatewayHarness, job: str) -> dict[str, Any]:
    """Returns the parameters in the row of a job."""
    with gateway.gateway.context.database.read() as session:
        return dict(session.scalars(select(Job.parameters).where(Job.id == job)).one())


def with_more(parameters: dict[str, Any]) -> dict[str, Any]:
    """Returns parameters as the next version may write them, with one field more on each level."""
    sampling = {**parameters["sampling"], "minimum": 0.5}
    return {**parameters, "negative_prompt": "a dog", "sampling": sampling}


def unreadable(parameters: dict[str, Any]) -> dict[str, Any]:
    """Returns parameters that this version cannot read."""
    return {**parameters, "seed": "the next version has words here"}


def spoil(gateway: GatewayHarness, job: str, change: Callable[[dict[str, Any]], Any] = unreadable) -> None:
    """Rewrites the parameters of a job."""
    write_row(gateway, job, parameters=change(stored(gateway, job)))


def listed(gateway: GatewayHarness) -> dict[str, job_pb2.Job]:
    """Returns all jobs as ListJobs does."""
    page = gateway.jobs.page(JobFilter(), after=None, limit=50)
    return {each.job.id: job_message(each, lambda key: None, full=False) for each in page}


def test_unknown_fields_are_ignored_and_kept(gateway: GatewayHarness) -> None:
    job = gateway.create()
    spoil(gateway, job, with_more)
    assert listed(gateway)[job].parameters.prompt == "a cat"
    gateway.run_jobs()
    assert gateway.state(job) == "succeeded"
    assert stored(gateway, job)["negative_prompt"] == "a dog"
    assert stored(gateway, job)["sampling"]["minimum"] == 0.5


def test_job_that_cannot_be_read_is_set_aside_and_the_others_go_on(gateway: GatewayHarness) -> None:
    bad = gateway.create()
    spoil(gateway, bad)
    good = [gateway.create() for _ in range(3)]
    gateway.run_jobs()
    assert [gateway.state(job) for job in good] == ["succeeded"] * 3
    shown = listed(gateway)
    assert set(shown) == {bad, *good}
    assert shown[bad].state == job_pb2.JOB_STATE_QUEUED
    assert "cannot read the job: parameters: seed" in shown[bad].trouble
    assert not shown[good[0]].trouble
    assert gauges(gateway.gateway.context)["jobs_set_aside"]() == 1
    gateway.pass_time(1001)
    assert gateway.state(bad) == "expired"
    gateway.pass_time(10_000)
    gateway.pass_time(10_000)
    assert listed(gateway) == {}


def test_repaired_job_goes_on(gateway: GatewayHarness) -> None:
    job = gateway.create()
    parameters = stored(gateway, job)
    spoil(gateway, job)
    assert gateway.send() == []
    write_row(gateway, job, parameters=parameters)
    assert gateway.send() == []
    gateway.pass_time(aside.SET_ASIDE_SECONDS)
    gateway.run_jobs()
    assert gateway.state(job) == "succeeded"
    assert not listed(gateway)[job].trouble
    assert gauges(gateway.gateway.context)["jobs_set_aside"]() == 0


def test_another_version_need_not_wait(make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = make_gateway(), make_gateway()
    job = old.create()
    parameters = stored(old, job)
    spoil(old, job)
    old.send()
    write_row(old, job, parameters=parameters)  # What the old version cannot read, the new one can.
    monkeypatch.setattr(aside, "VERSION", "another")
    assert [task.job for task in new.send()] == [job]


def test_unreadable_jobs_do_not_fill_the_window(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(window=8)
    bad, _, _ = encoded_job(gateway)
    spoil(gateway, bad)
    good = gateway.create()
    assert gateway.send() == []
    gateway.clock.advance(500)  # Its lease is lost, and its message cannot be made again.
    gateway.send()
    assert [task.job for task in gateway.send()] == [good] or gateway.state(good) != "queued"


def test_job_that_cannot_be_finished_does_not_hold_up_the_sweeper(gateway: GatewayHarness) -> None:
    old = gateway.create()
    gateway.run_jobs()
    bad, _, generates = encoded_job(gateway, time_limit=80_000.0)
    gateway.handle(finish_chunk(gateway, generates[0]))
    last = finish_chunk(gateway, generates[1])
    spoil(gateway, bad)
    gateway.handle(last)
    assert gateway.state(bad) == "running"
    gateway.pass_time(6000)
    assert old not in listed(gateway)
    assert gateway.store.stat(JobKeys(bad).result) is None


def test_progress_of_a_broken_job_does_not_hold_up_the_others(gateway: GatewayHarness) -> None:
    bad, _, of_bad = encoded_job(gateway)
    good, _, of_good = encoded_job(gateway)
    write_row(gateway, bad, candidates=0)  # A division by it fails.
    for generate in (of_bad[0], of_good[0]):
        gateway.handle(gateway.stages.draw_rows(generate, 2))
    gateway.gateway.progress.store()
    gateway.gateway.progress.store()
    assert gateway.jobs.get(good).job.rows_drawn > 0


def test_text_that_is_not_json_and_states_that_are_unknown_are_shown_as_such(gateway: GatewayHarness) -> None:
    database = gateway.gateway.context.database
    # PostgreSQL accepts no text that is not JSON.
    not_json = "{" if database.is_sqlite else "[]"
    broken, strange, good = (gateway.create() for _ in range(3))
    with database.write() as session:
        session.execute(
            text("UPDATE jobs SET parameters = :parameters WHERE id = :job"),
            {"job": broken, "parameters": not_json},
        )
        session.execute(text("UPDATE jobs SET state = 'asleep' WHERE id = :job"), {"job": strange})
    gateway.run_jobs()
    shown = listed(gateway)
    assert shown[broken].trouble
    assert shown[strange].trouble
    assert shown[strange].state == job_pb2.JOB_STATE_UNSPECIFIED
    assert gateway.state(good) == "succeeded"


# Schemas


def next_schema(database: Database, *, oldest: str | None) -> None:
    """Migrates a database as a future version may."""
    with database.write() as session:
        session.execute(text("ALTER TABLE jobs ADD COLUMN colour TEXT"))
        session.execute(text("UPDATE alembic_version SET version_num = '0999'"))
        if oldest:
            session.execute(text("UPDATE schema_compatibility SET oldest = :oldest"), {"oldest": oldest})


def test_gateway_starts_on_a_newer_schema_that_it_can_use(tmp_path: Path) -> None:
    with closing(sqlite_database(tmp_path)) as database:
        next_schema(database, oldest=None)
        database.migrate()


def test_gateway_refuses_a_schema_that_it_cannot_use(tmp_path: Path) -> None:
    with closing(sqlite_database(tmp_path)) as database:
        next_schema(database, oldest="0998")
        with pytest.raises(
            InvalidInputError, match=r"has schema 0999, and this version knows 00\d\d; start a newer"
        ):
            database.migrate()
