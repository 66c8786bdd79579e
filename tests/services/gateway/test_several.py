"""Several gateways on one PostgreSQL: they know each other, share the work, and see each other's changes at once."""

import asyncio
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import select, text

from harness.gateway import GatewayHarness, emptied_database, encoded_job
from harness.gateway_calls import create_request
from harness.grpc_server import asynchronous
from harness.queue import settings_for
from harness.servers import PostgresServer, ValkeyServer, free_port
from harness.service_process import ServiceProcess
from harness.waiting import wait_until
from smalti import __version__
from smalti.errors import DatabaseUnavailableError, JobNotFoundError
from smalti.policy import Verdict
from smalti.queue import BrokerSettings
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.rpc.channel import blocking_channel
from smalti.rpc.settings import RpcSettings
from smalti.services.gateway.database import presence
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.presence import Presence, Role
from smalti.services.gateway.database.rows import RowFeed
from smalti.services.gateway.database.tables import GatewayProcess, JobState, ScoredCandidate
from smalti.services.gateway.jobs.lifecycle import lock, remove, touch
from smalti.services.gateway.jobs.watchers import POLLS_WHILE_LISTENING, WatcherHub
from smalti.v1 import image_pb2, job_pb2
from smalti.v1.image_pb2_grpc import ImageServiceStub
from tests.services.gateway.conftest import needs_postgres

ROLES = list(Role)
LIMIT = 60.0
"""Seconds after which a call fails."""


class Colleague(GatewayHarness):
    """A gateway with connections of its own, as in a process of its own."""

    presence: Presence

    def __init__(
        self, database: Database, spec: ModelSpec, broker: BrokerSettings | None = None, **presence: Any
    ) -> None:
        self.presence = Presence(database, **presence)
        self.rows = None if broker is None else RowFeed(broker, self.presence)
        super().__init__(database, spec, presence=self.presence, rows=self.rows)

    def appear(self) -> None:
        """Starts what tells the others of this gateway, and waits until it hears of them."""
        self.presence.start()
        wait_until(lambda: bool(self.presence.listening))

    def die(self) -> None:
        """Ends as a process that is killed: its connections break."""
        self.presence.stop(10)

    def roles(self) -> list[Role]:
        """Returns the roles that it has."""
        return [role for role in Role if self.presence.holds(role)]

    def known(self) -> dict[str, GatewayProcess]:
        """Returns the gateways that are known, by their addresses."""
        with self.gateway.context.database.read() as session:
            return {row.address: row for row in session.scalars(select(GatewayProcess))}


@pytest.fixture
def colleague(postgres: PostgresServer, tiny: ModelFolder) -> Iterator[Callable[..., Colleague]]:
    """Makes gateways on one database."""
    if not postgres.running:
        postgres.start()
    with emptied_database(Database(postgres.url)), ExitStack() as stack:

        def make(**presence: Any) -> Colleague:
            database = stack.enter_context(closing(Database(postgres.url)))
            made = Colleague(database, ModelSpec.load(tiny), **presence)
            stack.callback(made.close)
            stack.callback(made.die)
            return made

        yield make


@needs_postgres
def test_gateways_are_known_while_they_live(colleague: Callable[..., Colleague]) -> None:
    first, second = colleague(address="one:1"), colleague(address="two:2")
    first.appear()
    second.appear()
    wait_until(lambda: set(first.known()) == {"one:1", "two:2"})
    row = first.known()["two:2"]
    assert (row.version, row.oldest_schema) == (__version__, "0001")
    assert row.newest_schema >= "0008"
    assert abs(row.seen_at / 1e6 - time.time()) < 10
    second.die()
    wait_until(lambda: set(first.known()) == {"one:1"})


@needs_postgres
def test_chunks_that_a_dead_gateway_was_sending_are_free_at_once(colleague: Callable[..., Colleague]) -> None:
    first, second = colleague(), colleague()
    assert second.send() == []
    first.appear()
    second.appear()
    job = first.create()
    first.gateway.send()  # It dies before it stores the confirmation.
    assert second.send() == []
    first.die()
    tasks: list[Any] = []

    def sends() -> bool:
        tasks[:] = second.send()
        return bool(tasks)

    wait_until(sends)  # No time passes on its clock.
    assert [(task.job, task.lease) for task in tasks] == [(job, 2)]
    # What a living gateway is sending is its own.
    other = second.create()
    second.gateway.send()
    third = colleague()
    third.appear()
    time.sleep(1.5)
    assert third.send() == []
    assert second.state(other) == "queued"


@needs_postgres
def test_what_a_dead_gateway_has_claimed_is_free_at_once(colleague: Callable[..., Colleague]) -> None:
    first, second = colleague(), colleague()
    first.appear()
    second.appear()
    job = first.create()
    cancelled = first.create()
    first.jobs.cancel(cancelled)
    checks = first.gateway.fan_in._checks
    with checks._claimed(job) as until:
        assert until is not None
        assert first.gateway.sweeper._claim() != []
        assert second.gateway.sweeper.run_store_tasks() == 0
        with second.gateway.fan_in._checks._claimed(job) as other:
            assert other is None
        first.die()

        def may_ask() -> bool:
            with second.gateway.fan_in._checks._claimed(job) as mine:
                return mine is not None

        wait_until(may_ask)  # No time passes on its clock.
        wait_until(lambda: second.gateway.sweeper.run_store_tasks() > 0)
        # If the first one is alive after all, its answer comes too late.
        version = second.get(job).job.version
        picture = ScoredCandidate(job_id=job, candidate=0, sha256="", key="")
        with second.gateway.fan_in._checks._claimed(job):
            checks._store(job, [picture], [Verdict(refused=True)], until)
        assert second.get(job).job.version == version
    assert second.get(job).job.asked_until is None


@needs_postgres
def test_rows_that_a_gateway_receives_reach_the_watchers_of_all(
    colleague: Callable[..., Colleague], valkey: ValkeyServer
) -> None:
    gateways = [colleague(broker=settings_for(valkey)) for _ in range(3)]
    for each in gateways:
        each.appear()
        assert each.rows is not None
        each.rows.start()
    first, *others = gateways
    wait_until(lambda: all(each.rows and each.rows.is_ready for each in gateways))
    wait_until(lambda: first.presence.others == 2)
    job, _, (generate, *_) = encoded_job(first)
    first.handle(first.stages.draw_rows(generate, 1))
    expected = first.gateway.watchers.preview_tokens.runs(job)
    assert len(expected) == len(generate.candidates)
    for each in others:
        runs = each.gateway.watchers.preview_tokens.runs
        wait_until(lambda runs=runs: runs(job) == expected)  # type: ignore[misc]
    for each in gateways:
        assert each.rows is not None
        each.rows.stop()


@needs_postgres
def test_job_is_deleted_while_its_request_is_repeated(colleague: Callable[..., Colleague]) -> None:
    first, second = colleague(), colleague()
    asked = {"request_id": "22222222-2222-4222-8222-222222222222", "request_hash": "a" * 64}
    job = first.create(**asked)
    first.jobs.cancel(job)
    database = first.gateway.context.database
    with ThreadPoolExecutor(1) as threads:
        # The one has the job's row and wants the tenant's, the other has the tenant's and waits for the request_id.
        with suppress(DatabaseUnavailableError), database.write() as session:
            found = lock(session, job)
            assert found is not None
            remove(session, found, first.clock())
            session.flush()
            repeated = threads.submit(second.create, **asked)
            waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            wait_until(lambda: bool(session.scalar(waits)))
        with suppress(DatabaseUnavailableError):
            repeated.result(timeout=30)
    # PostgreSQL has ended one of them within seconds, and the client repeats it.
    with suppress(JobNotFoundError):
        first.delete(job)
    again = second.create(**asked)
    assert again != job
    assert second.create(**asked) == again
    assert first.jobs.recount() == 0


@needs_postgres
def test_one_gateway_at_a_time_has_a_role(colleague: Callable[..., Colleague]) -> None:
    first, second = colleague(), colleague()
    first.appear()
    wait_until(lambda: first.roles() == ROLES)
    second.appear()
    assert second.roles() == []
    job = second.create()
    second.pass_time(1001)  # Its time limit is over, which is the first one's to see.
    assert second.state(job) == "queued"
    first.die()
    wait_until(lambda: second.roles() == ROLES)
    second.pass_time(0)
    assert second.state(job) == "expired"


@needs_postgres
def test_gateway_that_is_silent_loses_its_roles(
    colleague: Callable[..., Colleague], postgres: PostgresServer
) -> None:
    first, second = colleague(beat=1000.0, silent=2.0), colleague()
    first.appear()
    wait_until(lambda: first.roles() == ROLES)
    second.appear()
    wait_until(lambda: second.roles() == ROLES)
    wait_until(lambda: first.roles() == [])


@needs_postgres
def test_gateway_whose_connection_breaks_is_back_soon(
    colleague: Callable[..., Colleague], postgres: PostgresServer
) -> None:
    first = colleague(address="one:1")
    first.appear()
    wait_until(lambda: first.roles() == ROLES)
    with psycopg.connect(postgres.url, autocommit=True) as operator:
        operator.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            "AND backend_type = 'client backend'"
        )
    wait_until(lambda: first.presence.listening == 2)
    wait_until(lambda: first.roles() == ROLES)
    assert set(first.known()) == {"one:1"}


def test_gateway_that_cannot_connect_to_the_others_does_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = 2 * presence.BEAT_SECONDS + 0.5  # Longer than several tries take.
    monkeypatch.setattr(presence, "ALONE_SECONDS", alone)
    with closing(Database(f"postgresql://nobody@127.0.0.1:{free_port()}/none")) as database:
        lonely = Presence(database)
        assert lonely.holds(Role.SWEEPING)  # Before it starts, as in tests.
        lonely.start()
        assert not lonely.holds(Role.SWEEPING)
        wait_until(lambda: lonely.holds(Role.SWEEPING), 2 * alone)
        assert lonely.listening == 0
        lonely.stop(10)


@needs_postgres
@asynchronous
async def test_watcher_sees_at_once_what_another_gateway_has_done(
    colleague: Callable[..., Colleague],
) -> None:
    first, second = colleague(), colleague()
    for each in (first, second):
        await asyncio.to_thread(each.appear)
    job = await asyncio.to_thread(first.create)
    with first.gateway.watchers.watch(job) as watcher:
        watcher.changed = False
        # Nobody polls.
        await asyncio.to_thread(second.cancel, job)
        await asyncio.wait_for(watcher.wakeup.wait(), 10)
        assert watcher.changed
        assert (await asyncio.to_thread(first.jobs.get, job)).job.state is JobState.CANCELLED
        watcher.wakeup.clear()
        await asyncio.to_thread(second.jobs.delete, job)
        await asyncio.wait_for(watcher.wakeup.wait(), 10)


@needs_postgres
def test_change_that_is_rolled_back_is_not_reported(
    colleague: Callable[..., Colleague], postgres: PostgresServer
) -> None:
    first = colleague()
    job = first.create()
    with psycopg.connect(postgres.url, autocommit=True) as listener:
        listener.execute("LISTEN smalti_jobs")
        database = first.gateway.context.database
        with pytest.raises(RuntimeError), database.write() as session:  # noqa: PT012 - it ends the block
            row = lock(session, job)
            assert row is not None
            touch(row)
            raise RuntimeError("it ends here")
        first.cancel(job)
        notices = list(listener.notifies(timeout=5, stop_after=1))
    assert [notice.payload for notice in notices] == [f"{database.id} {job}"]


@asynchronous
async def test_polling_is_slow_while_changes_are_reported() -> None:
    hub = WatcherHub(lambda job, lease: 4)
    connection, polls = 0, 0

    def read(job_ids: Sequence[str]) -> Mapping[str, int]:
        nonlocal polls
        polls += 1
        return {}

    async def polled(seconds: float) -> int:
        before = polls
        await asyncio.sleep(seconds)
        return polls - before

    interval = 0.02
    with hub.watch("job"):
        looking = asyncio.create_task(hub.poll(read, interval, lambda: connection))
        assert await polled(interval * POLLS_WHILE_LISTENING * 3) > 6
        connection = 1
        await asyncio.sleep(4 * interval)
        assert await polled(interval * POLLS_WHILE_LISTENING * 3) <= 4
        connection = 2  # What was changed in between was not reported.
        assert await polled(5 * interval) >= 1
        looking.cancel()


@needs_postgres
@pytest.mark.server
@pytest.mark.process
def test_processes_share_a_database(
    colleague: Callable[..., Colleague],
    postgres: PostgresServer,
    valkey: ValkeyServer,
    tiny: ModelFolder,
    tmp_path: Path,
) -> None:
    ports = {"first": free_port(), "second": free_port()}
    processes = [
        ServiceProcess(
            "gateway",
            broker=valkey.url,
            store=(tmp_path / "store").as_uri(),
            model=tiny.path,
            folder=tmp_path / name,
            environment={
                "SMALTI_GATEWAY_DATABASE": postgres.url,
                "SMALTI_GATEWAY_WATCH": "600",  # So that it is not polling that helps.
                "SMALTI_METRICS_PORT": str(port),
            },
        )
        for name, port in ports.items()
    ]
    sweeps = 'smalti_gateway_roles{model="tiny",role="sweeping",service="gateway"} 1.0'
    with ExitStack() as stack:
        first, second = (stack.enter_context(process) for process in processes)
        wait_until(lambda: sweeps in metrics(ports["first"]))
        stubs = [
            ImageServiceStub(stack.enter_context(blocking_channel(each.url, RpcSettings(attempts=1))))
            for each in (first, second)
        ]
        job = stubs[0].CreateImages(create_request(), timeout=LIMIT).job.id
        watching = stubs[1].WatchJob(image_pb2.WatchJobRequest(job_id=job), timeout=LIMIT)
        assert next(watching).job.state == job_pb2.JOB_STATE_QUEUED
        stubs[0].CancelJob(image_pb2.CancelJobRequest(job_id=job), timeout=LIMIT)
        *_, last = watching
        assert last.job.state == job_pb2.JOB_STATE_CANCELLED
        assert sweeps not in metrics(ports["second"])
        assert "smalti_gateways" in metrics(ports["second"])
        first.kill()
        wait_until(lambda: sweeps in metrics(ports["second"]))
        assert second.end() == 0


def metrics(port: int) -> str:
    """Returns the metrics of a process."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=LIMIT) as response:
        return str(response.read().decode())
