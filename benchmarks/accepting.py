"""Measures how many jobs a second gateways accept on PostgreSQL, beside the database and some milliseconds away.

Each gateway is a process with the threads that a gateway has for its callers. They call what CreateImages calls, so
that the times are the database's and not those of gRPC.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Final

from benchmarks.report import Row, compared
from harness.gateway import job_spec
from harness.proxy import NetworkFault, Proxy
from harness.servers import HOST, PostgresServer
from smalti.registry import library
from smalti.registry.spec import ModelSpec
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.gateway import MAX_CALLS
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.repository import JobRepository
from smalti.services.gateway.models import Catalogue, ModelCard
from smalti.services.gateway.settings import GatewaySettings
from smalti.storage import MemoryStore
from smalti.testing.publisher import MemoryPublisher

DELAY_SECONDS: Final = 0.004
"""Delay of what is sent to the database, and of its answers."""
GATEWAYS: Final = (1, 2)
GOALS: Final = {0.0: 400.0, DELAY_SECONDS: 150.0}
"""Jobs per second that two gateways shall accept, by the delay."""
START_SECONDS: Final = 5.0
"""Time in which gateways load the model."""
OPEN_JOBS: Final = 10**6
"""None is refused."""


@dataclass(frozen=True)
class Callers:
    """The callers of each gateway."""

    seconds: float
    """Time for which jobs are created."""
    warm_up: float
    """Time before it, in which connections are made."""


FULL = Callers(10.0, 2.0)
QUICK = Callers(1.0, 0.5)


def measure(callers: Callers) -> list[Row]:
    """Measures one gateway and two, without a delay and with one; the database is empty each time."""
    with PostgresServer() as server, Proxy(server.port) as proxy:
        return list(_rows(server, proxy, callers))


def _rows(server: PostgresServer, proxy: Proxy, callers: Callers) -> Iterator[Row]:
    for delay in GOALS:
        proxy.fault = NetworkFault(delay=delay)
        port = proxy.port if delay else server.port
        url = f"postgresql://{server.user}@{HOST}:{port}/{server.database}"
        for gateways in GATEWAYS:
            _prepare(server)
            rate = _rate(url, gateways, callers)
            where = f"{1000 * delay:g} ms away" if delay else "beside its database"
            work = f"jobs accepted by {gateways} {'gateways' if gateways > 1 else 'gateway'} {where}"
            goal = compared(rate, GOALS[delay], "/s") if gateways == GATEWAYS[-1] else ("", "")
            yield Row(work, f"{rate:.0f}/s", "", *goal)


def _prepare(server: PostgresServer) -> None:
    """Makes the tables anew."""
    import psycopg

    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    with closing(Database(server.url)) as database:
        database.migrate()


def _rate(url: str, gateways: int, callers: Callers) -> float:
    """Returns the jobs per second that all gateways accept together."""
    with ProcessPoolExecutor(gateways, mp_context=get_context("spawn")) as pool:
        # The imports of the pool's processes are not part of the load.
        for ready in [pool.submit(_stand_by) for _ in range(gateways)]:
            ready.result()
        begin = time.time() + START_SECONDS
        counts = [pool.submit(_accept, url, begin, callers) for _ in range(gateways)]
        return sum(count.result() for count in counts) / callers.seconds


def _stand_by() -> None:
    """Waits a moment, in a process that has imported this module, so that another one gets the next call."""
    time.sleep(1.0)


def _accept(url: str, begin: float, callers: Callers) -> int:
    """Creates jobs in the threads of one gateway; returns how many were accepted after the warm-up.

    Args:
        url: the database.
        begin: the time in seconds since 1970 at which all gateways begin.
        callers: how long.
    """
    with closing(Database(url)) as database:
        context = GatewayContext(
            database=database,
            store=MemoryStore(),
            publisher=MemoryPublisher(),
            catalogue=Catalogue(database, ModelCard.from_spec(ModelSpec.load(library.find("pictograms")))),
            settings=GatewaySettings(open_jobs=OPEN_JOBS, stored_jobs=OPEN_JOBS),
        )
        jobs = JobRepository(context)
        time.sleep(max(0.0, begin - time.time()))
        counted, end = begin + callers.warm_up, begin + callers.warm_up + callers.seconds

        def create(_: Any) -> int:
            count = 0
            while (now := time.time()) < end:
                jobs.create(job_spec(candidates=16, n=9))
                count += counted <= now
            return count

        with ThreadPoolExecutor(MAX_CALLS) as threads:
            return sum(threads.map(create, range(MAX_CALLS)))
