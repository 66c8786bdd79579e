"""Cumulative counts of everything that a running system does: database, broker, store, processors."""

import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import psutil
import redis
import sqlalchemy
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.deployment import Deployment
from benchmarks.scale.costs import Counts
from harness.servers import HOST, PostgresServer, S3Server, free_port

PUBLISHING: Final = "lpush"
"""The command with which a message is put into a queue of Valkey."""
OTHER: Final = ("info",)
"""Commands of Valkey that are this benchmark's own."""


class CountedStore(S3Server):
    """SeaweedFS with its own metrics."""

    def __init__(self, folder: Path) -> None:
        """Creates the server; see `Server`."""
        super().__init__(folder)
        self.metrics_port = free_port()

    def _run(self, *command: str | Path, **options: Any) -> Any:
        return super()._run(*command, f"-metricsPort={self.metrics_port}", **options)


class Counters:
    """Reads the counts of a deployment whose gateway is `counted_gateway` and whose store is a `CountedStore`."""

    def __init__(self, system: Deployment, gateway_port: int, postgres: PostgresServer | None) -> None:
        """Connects at each reading.

        Args:
            system: the running system.
            gateway_port: where the gateway tells its counts.
            postgres: its database, if that is not SQLite.
        """
        self._system = system
        self._port = gateway_port
        self._postgres = postgres

    def read(self) -> Counts:
        """Returns all counts since the start."""
        return {**self._database(), **self._broker(), **self._store(), **self._processors()}

    def activity(self) -> tuple[float, float]:
        """Returns the commits and the requests to the store since the start; reading them costs neither."""
        commits = sum(value for name, _, value in _samples(self._port) if name == "commits_total")
        return commits, self._store()["store: requests"]

    def _database(self) -> dict[str, float]:
        found = {"database: statements": 0.0, "database: rows written": 0.0}
        for name, labels, value in _samples(self._port):
            if name == "commits_total":
                found["database: commits"] = value
            elif name == "statements_total":
                found[f"database: {labels['verb']}"] = value
                found["database: statements"] += value
            elif name == "rows_total":
                found["database: rows written"] += value
        if self._postgres is not None:
            address = self._postgres.url.replace("postgresql:", "postgresql+psycopg:")
            engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool)
            with engine.connect() as connection:
                wal = (
                    "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn, pg_database_size(current_database())"
                )
                written, size = connection.execute(sqlalchemy.text(wal)).one()
            engine.dispose()
            found |= {"database: bytes of the log": float(written), "database: bytes": float(size)}
        return found

    def _broker(self) -> dict[str, float]:
        with redis.Redis.from_url(self._system.valkey.url) as broker:
            commands: Any = broker.info("commandstats")
            traffic: Any = broker.info("stats")
        calls = {name.removeprefix("cmdstat_"): told["calls"] for name, told in commands.items()}
        return {
            "broker: messages": float(calls.get(PUBLISHING, 0)),
            "broker: commands": float(sum(calls.values()) - sum(calls.get(each, 0) for each in OTHER)),
            "broker: bytes received": float(traffic["total_net_input_bytes"]),
            "broker: bytes sent": float(traffic["total_net_output_bytes"]),
        }

    def _store(self) -> dict[str, float]:
        store = self._system.store
        assert isinstance(store, CountedStore)
        found = {"store: requests": 0.0, "store: bytes received": 0.0, "store: bytes sent": 0.0}
        for name, labels, value in _samples(store.metrics_port):
            if name == "SeaweedFS_s3_request_total":
                kind = f"store: {labels['type']}"
                found[kind] = found.get(kind, 0.0) + value
                found["store: requests"] += value
            elif name == "SeaweedFS_s3_bucket_traffic_received_bytes_total":
                found["store: bytes received"] += value
            elif name == "SeaweedFS_s3_bucket_traffic_sent_bytes_total":
                found["store: bytes sent"] += value
        return found

    def _processors(self) -> dict[str, float]:
        servers: dict[str, Any] = {
            **self._system.services,
            "Valkey": self._system.valkey,
            "SeaweedFS": self._system.store,
        }
        if self._postgres is not None:
            servers["PostgreSQL"] = self._postgres
        used = {f"processor: {name}": _used(server.pids[-1]) for name, server in servers.items()}
        own = psutil.Process().cpu_times()
        return {**used, "processor: the clients": own.user + own.system}


def _used(pid: int) -> float:
    """Returns the processor seconds that a process and its children, also those that have ended, have used."""
    top = psutil.Process(pid)
    times = [process.cpu_times() for process in (top, *top.children(recursive=True))]
    return sum(each.user + each.system + each.children_user + each.children_system for each in times)


def _samples(port: int) -> list[tuple[str, Mapping[str, str], float]]:
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return [(each.name, each.labels, each.value) for family in families for each in family.samples]
