"""Tenants: what they may have, counted exactly by all gateways together."""

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, insert, select, text, update

from harness.gateway import GatewayHarness, MakeGateway, encoded_job, job_spec
from harness.waiting import wait_until
from smalti.errors import InvalidInputError, JobNotFoundError, OverloadedError
from smalti.parameters import Priority
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import COUNTERS, DEFAULT_TENANT, Job, Tenant
from smalti.services.gateway.jobs import tenants
from smalti.services.gateway.jobs.admission import MAX_LEADERS
from smalti.services.gateway.jobs.repository import JobFilter
from smalti.services.gateway.jobs.spec import JobSpec
from tests.services.gateway.conftest import needs_postgres


def counters(database: Database, tenant: str = DEFAULT_TENANT) -> dict[str, int]:
    """Returns the counters of a tenant."""
    with database.read() as session:
        row = session.get_one(Tenant, tenant)
        return {name: getattr(row, name) for name in COUNTERS}


def is_exact(database: Database) -> bool:
    """Returns whether all counters are what the jobs are."""
    return tenants.recount(database) == 0


def add_tenant(database: Database, name: str, **limits: int) -> None:
    """Adds a tenant."""
    with database.write() as session:
        session.add(Tenant(id=name, **limits))


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """Lists the statements that are sent to the database while the block runs."""
    sent: list[str] = []

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        sent.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    yield sent
    event.remove(database.engine, "before_cursor_execute", note)


def test_counters_follow_jobs_from_their_acceptance_to_their_removal(gateway: GatewayHarness) -> None:
    database = gateway.gateway.context.database
    gateway.create()
    batch = gateway.create(priority=Priority.BATCH, labels={"colour": "red"})
    counted = counters(database)
    assert (counted["open_jobs"], counted["open_batch_jobs"], counted["stored_jobs"]) == (2, 1, 2)
    gateway.cancel(batch)
    gateway.cancel(batch)  # It ends once.
    assert counters(database) == {**counted, "open_jobs": 1, "open_batch_jobs": 0}
    gateway.run_jobs()
    assert counters(database) == {**counted, "open_jobs": 0, "open_batch_jobs": 0}
    gateway.jobs.delete(batch)
    gateway.jobs.delete(batch)
    assert counters(database)["stored_jobs"] == 1
    gateway.pass_time(10_000)
    assert set(counters(database).values()) == {0}
    assert is_exact(database)


def test_counters_are_exact_while_jobs_come_and_go_at_the_same_time(make_gateway: MakeGateway) -> None:
    gateways = [make_gateway(open_jobs=6), make_gateway(open_jobs=6)]
    database = gateways[0].gateway.context.database
    together = threading.Barrier(8)
    most = []

    def come_and_go(number: int) -> int:
        gateway, accepted = gateways[number % 2], 0
        together.wait(30)
        for turn in range(6):
            try:
                job = gateway.jobs.create(job_spec(labels={"by": str(number)})).job.id
            except OverloadedError:
                continue
            accepted += 1
            most.append(counters(database)["open_jobs"])
            gateway.jobs.cancel(job)
            if turn % 2:
                gateway.jobs.delete(job)
        return accepted

    with ThreadPoolExecutor(8) as threads:
        accepted = sum(threads.map(come_and_go, range(8)))
    assert accepted > 6
    assert max(most) <= 6
    assert counters(database)["open_jobs"] == 0
    assert is_exact(database)


def test_limit_is_exact_for_two_gateways_together(make_gateway: MakeGateway) -> None:
    gateways = [make_gateway(open_jobs=5), make_gateway(open_jobs=5)]
    together = threading.Barrier(12)

    def create(number: int) -> bool:
        together.wait(30)
        try:
            gateways[number % 2].jobs.create(job_spec())
        except OverloadedError:
            return False
        return True

    with ThreadPoolExecutor(12) as threads:
        assert sum(threads.map(create, range(12))) == 5
    assert counters(gateways[0].gateway.context.database)["open_jobs"] == 5


def test_only_one_of_two_jobs_that_come_together_is_the_only_one(make_gateway: MakeGateway) -> None:
    gateways = [make_gateway(idle_candidates=32) for _ in range(4)]
    together = threading.Barrier(4)

    def create(gateway: GatewayHarness) -> int:
        together.wait(30)
        return gateway.jobs.create(job_spec(candidates=None, n=None)).job.candidates

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(create, gateways)) == [16, 16, 16, 32]
    gateways[0].run_jobs()
    assert create_alone(gateways[1]) == 32


def create_alone(gateway: GatewayHarness) -> int:
    """Creates a job that leaves its number of candidates to the gateway; returns that number."""
    return gateway.jobs.create(job_spec(candidates=None, n=None)).job.candidates


def test_jobs_ahead_are_those_that_are_served_before(gateway: GatewayHarness) -> None:
    specs = [job_spec(priority=priority) for priority in (Priority.BATCH, Priority.INTERACTIVE) * 2]
    ahead = []
    for spec in specs:
        gateway.clock.advance(1)
        ahead.append(gateway.jobs.create(spec).jobs_ahead)
    assert ahead == [0, 0, 2, 1]


@needs_postgres
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_postgresql_stores_a_job_in_one_statement(gateway: GatewayHarness) -> None:
    database = gateway.gateway.context.database
    gateway.create(labels={"colour": "red"})
    with statements(database) as sent:
        gateway.create(labels={"colour": "red", "size": "big"})
    assert len(sent) == 1
    assert len(sent[0]) < 4096  # The driver parses longer ones anew each time.


@needs_postgres
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_postgresql_ends_a_job_without_waiting_with_the_row_of_its_tenant(gateway: GatewayHarness) -> None:
    """The row is locked by a statement that travels with the COMMIT, which SQLAlchemy does not see."""
    database = gateway.gateway.context.database
    job = gateway.create()
    with statements(database) as sent:
        gateway.cancel(job)
    assert not [statement for statement in sent if "UPDATE tenants" in statement]
    assert counters(database)["open_jobs"] == 0


@contextmanager
def all_at_once(gateway: GatewayHarness, specs: list[JobSpec]) -> Iterator[list["Future[str]"]]:
    """Creates jobs while the row of their tenant is locked; all wait when the block begins, and are done after it."""

    def create(spec: JobSpec) -> str:
        return gateway.jobs.create(spec).job.id

    with ThreadPoolExecutor(len(specs)) as threads:
        with gateway.gateway.context.database.write() as session:
            session.execute(select(Tenant).with_for_update())
            created = [threads.submit(create, spec) for spec in specs]
            wait_until(lambda: gateway.jobs.admissions.waiting == len(specs) - MAX_LEADERS)
        yield created


def test_jobs_that_come_together_are_stored_together(gateway: GatewayHarness) -> None:
    specs = [job_spec(f"cat {number}", labels={"number": str(number)}) for number in range(10)]
    with (
        statements(gateway.gateway.context.database) as sent,
        all_at_once(gateway, specs) as created,
    ):
        jobs = [gateway.get(each.result()).job for each in created]
    assert [job.parameters["prompt"] for job in jobs] == [spec.prompt for spec in specs]
    assert [job.labels for job in jobs] == [spec.labels for spec in specs]
    # Those that came first, and those that waited for them, perhaps in as many groups.
    assert len([statement for statement in sent if "UPDATE tenants" in statement]) <= 2 * MAX_LEADERS
    assert is_exact(gateway.gateway.context.database)
    assert sorted(task.job for task in gateway.send()) == sorted(job.id for job in jobs)


def test_jobs_that_come_together_are_refused_one_by_one(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(open_jobs=6)
    with all_at_once(gateway, [job_spec()] * 10) as created:
        errors = [each.exception() for each in created]
    assert sum(error is None for error in errors) == 6
    assert sum(isinstance(error, OverloadedError) for error in errors) == 4
    assert counters(gateway.gateway.context.database)["open_jobs"] == 6


def test_repeated_requests_that_come_together_harm_nobody(gateway: GatewayHarness) -> None:
    repeated = job_spec(request_id=str(uuid.uuid4()), request_hash="a" * 64)
    with all_at_once(gateway, [job_spec(), repeated] * 5) as created:
        jobs = {each.result() for each in created}
    assert len(jobs) == 6
    assert counters(gateway.gateway.context.database)["open_jobs"] == 6


def test_tenants_have_limits_of_their_own(gateway: GatewayHarness) -> None:
    database = gateway.gateway.context.database
    add_tenant(database, "small", max_open_jobs=1, max_stored_jobs=2)
    first = gateway.create(tenant="small")
    with pytest.raises(OverloadedError, match=r"too many open jobs \(1\)"):
        gateway.create(tenant="small")
    gateway.create()  # Others are not affected.
    gateway.cancel(first)
    second = gateway.create(tenant="small")
    gateway.cancel(second)
    with pytest.raises(OverloadedError, match=r"too many jobs are stored \(2\)"):
        gateway.create(tenant="small")
    gateway.delete(first)
    gateway.create(tenant="small")
    with pytest.raises(InvalidInputError, match="tenant: is not known: 'nobody'"):
        gateway.create(tenant="nobody")


def test_setting_limits_all_tenants_together(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(open_jobs=3)
    add_tenant(gateway.gateway.context.database, "other")
    for tenant in ("other", DEFAULT_TENANT, "other"):
        gateway.create(tenant=tenant)
    with pytest.raises(OverloadedError, match=r"too many open jobs \(3\)"):
        gateway.create()


def test_tenants_do_not_see_each_other(gateway: GatewayHarness) -> None:
    add_tenant(gateway.gateway.context.database, "other")
    spec = {"request_id": str(uuid.uuid4()), "request_hash": "a" * 64}
    ours = gateway.jobs.create(job_spec(**spec)).job.id
    theirs = gateway.jobs.create(job_spec(**{**spec, "request_hash": "b" * 64, "tenant": "other"})).job.id
    assert ours != theirs
    assert gateway.jobs.create(job_spec(**spec)).job.id == ours
    listed = gateway.jobs.page(JobFilter(tenant="other"), after=None, limit=10)
    assert [each.job.id for each in listed] == [theirs]
    assert gateway.jobs.get(theirs, tenant="other").job.id == theirs
    for call in (gateway.jobs.get, gateway.jobs.cancel):
        with pytest.raises(JobNotFoundError):
            call(theirs, tenant=DEFAULT_TENANT)
    gateway.jobs.cancel(theirs)
    gateway.jobs.delete(theirs, tenant=DEFAULT_TENANT)
    assert gateway.state(theirs) == "cancelled"


def test_counters_that_an_old_gateway_has_not_changed_are_corrected(gateway: GatewayHarness) -> None:
    database = gateway.gateway.context.database
    job, *_ = encoded_job(gateway, priority=Priority.BATCH)
    with database.write() as session:
        row = session.get_one(Job, job)
        known = {
            column.name: getattr(row, attribute.key)
            for attribute in Job.__mapper__.column_attrs
            for column in attribute.columns
            if column.name != "tenant"
        }
        # What 0.2.0 does: it names no tenant, and counts nothing.
        table: Any = Job.__table__
        session.execute(insert(table), {**known, "id": "accepted", "request_id": None})
        session.execute(update(Job).where(Job.id == job).values(state="succeeded"))
        session.execute(text("UPDATE chunks SET state = 'dropped'"))
    assert gateway.jobs.recount() == 1
    assert gateway.jobs.recount() == 0
    counted = counters(database)
    assert (counted["open_jobs"], counted["open_batch_jobs"], counted["stored_jobs"]) == (1, 1, 2)
    with database.read() as session:
        assert counted["stored_bytes"] == sum(session.scalars(select(Job.size)))
        assert set(session.scalars(select(Job.tenant))) == {DEFAULT_TENANT}
