"""The whole system as processes that can be harmed, and that are restarted when they end."""

import itertools
import json
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from pydantic import SecretStr

from faults.layout import DECODER, FIRST, SETTINGS, Layout
from faults.processes import Ended, RestartedService
from harness.proxy import NetworkFault, Proxy
from harness.releases import release_environment
from harness.servers import HOST, PostgresServer, RabbitMQServer, S3Server, Server, ValkeyServer
from harness.waiting import wait_until
from smalti.client import Client
from smalti.messages import Stage, queue_name
from smalti.queue import BrokerSettings, celery_application
from smalti.registry.folder import ModelFolder
from smalti.rpc.settings import RpcSettings
from smalti.service.failpoints import STATE_VARIABLE, VARIABLE, parse
from smalti.storage import ObjectStore, StoreSettings, open_store

PATIENCE = 240.0
"""Time limit in seconds for anything that a row waits for, on a busy machine."""
WATCH_SECONDS = 0.1

BROKERS: Mapping[str, type[Server]] = {"valkey": ValkeyServer, "rabbitmq": RabbitMQServer}


def client_of(url: str, *, attempts: int, retry_seconds: float) -> Client:
    """Returns a client of one address."""
    settings = RpcSettings(attempts=attempts)
    return Client(url, retry_seconds=retry_seconds, call_seconds=30, settings=settings)


class System:
    """A broker, a store, a database, gateways and the stages; a context manager.

    Each gateway reaches the broker and the store through proxies of its own, and the stages through others. Several
    gateways reach PostgreSQL through proxies too.
    """

    def __init__(self, layout: Layout, models: Mapping[str, ModelFolder], folder: Path) -> None:
        """Creates the system without starting it.

        Args:
            layout: the parts of the system.
            models: the models to generate with, by their names in the layout.
            folder: the folder for data and logs.
        """
        self.layout = layout
        self.models = models
        self.folder = folder
        self.state = folder / "failpoints"
        self.ends: list[Ended] = []
        self.processes: dict[str, RestartedService] = {}
        self.gateways = ("gateway", *(f"gateway-{number}" for number in range(2, layout.gateways + 1)))
        """The names of the gateways that clients use."""
        self._turns = itertools.count()
        self._stack = ExitStack()
        self._closing = threading.Event()
        self._lock = threading.Lock()

    def start(self) -> Self:
        """Starts all processes, and waits until they serve."""
        try:
            self._start_servers()
            self._start_services()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Stops all processes, the services first."""
        self._closing.set()
        with self._lock:
            for process in self.processes.values():
                process.signal(signal.SIGCONT)
                process.signal(signal.SIGTERM)
            for process in self.processes.values():
                process.close()
        self._stack.close()

    def left_over(self) -> list[str]:
        """Returns the command lines of processes of this system that still run."""
        found = []
        folders = [self.folder, *([self.postgres.folder] if self.postgres else [])]
        for process in psutil.process_iter():
            try:
                # Each runs in its own folder below these.
                if any(Path(process.cwd()).is_relative_to(folder) for folder in folders):
                    found.append(" ".join(process.cmdline()[:4]))
            except psutil.Error:
                continue
        return found

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def model(self) -> ModelFolder:
        """The model that the gateways are configured with."""
        return self.models[FIRST]

    @property
    def gateway(self) -> RestartedService:
        """The process of the first gateway."""
        return self.processes["gateway"]

    def of(self, service: str) -> list[RestartedService]:
        """Returns all processes of a service."""
        return [process for name, process in self.processes.items() if name.partition("-")[0] == service]

    @contextmanager
    def client(self, gateway: str = "", *, attempts: int = 1, retry_seconds: float = 0.0) -> Iterator[Client]:
        """Yields a client of a gateway; by default it does not retry, and the gateways take turns.

        A client that retries is not given a gateway that is held or suspended, if there is another one.
        """
        names = self.gateways
        if retry_seconds:
            names = tuple(name for name in names if self.processes[name].goes_on) or names
        url = self.processes[gateway or names[next(self._turns) % len(names)]].url
        with client_of(url, attempts=attempts, retry_seconds=retry_seconds) as client:
            yield client

    @contextmanager
    def clients(self, *, attempts: int = 1, retry_seconds: float = 0.0) -> Iterator[Sequence[Client]]:
        """Yields a client of each gateway; see `client`."""
        with ExitStack() as stack:
            yield [
                stack.enter_context(self.client(name, attempts=attempts, retry_seconds=retry_seconds))
                for name in self.gateways
            ]

    def broker_settings(self, **changes: Any) -> BrokerSettings:
        """Returns settings for direct access to the broker, without a proxy."""
        return BrokerSettings(url=SecretStr(self.broker.url), timeout=PATIENCE, **changes)

    # Faults.

    def kill(self, name: str) -> None:
        """Kills a process with SIGKILL; it is restarted."""
        self.processes[name].signal(signal.SIGKILL)

    def wait_for_end(self, *names: str, since: float, seconds: float = PATIENCE) -> Ended:
        """Waits until one of several processes ends, or has ended after `since` (Unix time)."""
        found: list[Ended] = []

        def look() -> bool:
            found[:] = [end for end in self.ends if end.name in names and end.when >= since]
            return bool(found)

        wait_until(look, seconds)
        return found[0]

    def wait_until_serving(self, *names: str) -> None:
        """Waits until processes serve, by default all that are not held."""
        for name in names or [name for name, process in self.processes.items() if not process.held]:
            wait_until(self.processes[name].serves, PATIENCE)

    def reached(self, failpoint: str, number: int = 0) -> bool:
        """Returns whether a counting failpoint has been hit `number` + 1 times."""
        return parse(failpoint).mark(self.state, number).exists()

    def wait_until_reached(self, failpoint: str, number: int = 0) -> None:
        """Waits until a counting failpoint has been hit `number` + 1 times."""
        wait_until(lambda: self.reached(failpoint, number), PATIENCE)

    def end(self, *names: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends processes, and does not restart them until they are released."""
        for name in names:
            self.processes[name].held = True
            self.processes[name].signal(number)
        wait_until(lambda: not any(self.processes[name].pid for name in names), PATIENCE)

    @contextmanager
    def held(self, *names: str) -> Iterator[None]:
        """Stops processes, and does not restart them while the block runs."""
        self.end(*names)
        try:
            yield
        finally:
            self.release(*names)

    def release(self, *names: str) -> None:
        """Restarts processes that were held."""
        for name in names:
            self.processes[name].held = False
        self.wait_until_serving(*names)

    @contextmanager
    def failing(
        self, name: str, *failpoints: str, settings: Mapping[str, str] | None = None
    ) -> Iterator[None]:
        """Runs a process with its own failpoints while the block runs."""
        process = self.processes[name]
        usual = dict(process.environment)
        with self.held(name):
            process.environment = {**usual, **(settings or {}), VARIABLE: ";".join(failpoints)}
        try:
            yield
        finally:
            with self.held(name):
                process.environment = usual

    def replace(self, name: str, release: str = "", **settings: str) -> None:
        """Ends a process, and starts another version in its place: a release, or the present code; with settings."""
        process = self.processes[name]
        usual = {key: value for key, value in process.environment.items() if key != "PYTHONPATH"}
        with self.held(name):
            process.environment = {**usual, **settings, **(release_environment(release) if release else {})}

    @contextmanager
    def disk_full(self, process: int) -> Iterator[None]:
        """Makes all writes of a process to files fail while the block runs."""
        before = resource.prlimit(process, resource.RLIMIT_FSIZE)
        resource.prlimit(process, resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            yield
        finally:
            resource.prlimit(process, resource.RLIMIT_FSIZE, before)

    @contextmanager
    def faulty(self, side: str, server: str, fault: NetworkFault) -> Iterator[None]:
        """Injects a fault into the connections to a server while the block runs.

        Args:
            side: `stages`, `gateways` for all that clients use, or the name of one.
            server: `broker`, `store`, or `database` with several gateways.
            fault: the fault.
        """
        sides = self.gateways if side == "gateways" else (side,)
        with ExitStack() as stack:
            for each in sides:
                stack.enter_context(self.proxies[each, server].faulty(fault))
            yield

    # Observations.

    def lines(self, *names: str) -> list[dict[str, Any]]:
        """Returns the parsed log lines of processes, by default of all."""
        found = []
        for name in names or tuple(self.processes):
            log = self.processes[name].log
            for line in log.read_text(errors="replace").splitlines() if log.exists() else ():
                if line.startswith("{"):
                    try:
                        found.append(json.loads(line))
                    except ValueError:
                        continue  # A truncated last line of a killed process.
        return found

    def executions(self, *names: str) -> dict[tuple[str, str, int | None], int]:
        """Counts how often the work of each job, stage and chunk was done, by default by all processes."""
        counts: dict[tuple[str, str, int | None], int] = {}
        others = (name for name in self.processes if name.partition("-")[0] != "gateway")
        for line in self.lines(*(names or others)):
            if str(line.get("event", "")).startswith("the work is done"):
                work = (line["job"], line["stage"], line.get("chunk"))
                counts[work] = counts.get(work, 0) + 1
        return counts

    def metric(self, name: str, metric: str, **labels: str) -> float:
        """Returns the sum of the series of a metric that have the labels; 0 if there are none."""
        import urllib.request

        from prometheus_client.parser import text_string_to_metric_families

        text = urllib.request.urlopen(self._metrics_url(name), timeout=30).read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"smalti_{metric}" and labels.items() <= sample.labels.items()
        )

    def waiting(self, stage: Stage) -> int:
        """Returns the number of interactive messages of a stage that wait in the broker."""
        with celery_application(self.broker_settings()).connection_for_read() as connection:
            channel = connection.channel()
            return int(channel.queue_declare(queue_name(stage), passive=True).message_count)

    def resident_bytes(self, name: str) -> int:
        """Returns the resident memory of a process."""
        return int(psutil.Process(self.processes[name].pid).memory_info().rss)

    def _metrics_url(self, name: str) -> str:
        found = [
            line["event"] for line in self.lines(name) if "metrics are served at" in str(line.get("event"))
        ]
        return str(found[-1]).rpartition(" ")[2]

    # Start.

    def _start_servers(self) -> None:
        self.broker = BROKERS[self.layout.broker](self.folder / "broker")
        self.s3 = S3Server(self.folder / "store")
        # In a temporary folder: it may run as another user, without access to ours.
        self.postgres = PostgresServer() if self.layout.database == "postgres" else None
        servers = [each for each in (self.broker, self.s3, self.postgres) if each is not None]
        for server in servers:
            self._stack.callback(server.close)
        with ThreadPoolExecutor() as threads:
            for started in [threads.submit(server.start) for server in servers]:
                started.result()
        through: list[tuple[str, Server]] = [("broker", self.broker), ("store", self.s3)]
        if self.postgres and self.layout.gateways > 1:
            through.append(("database", self.postgres))
        gateways = {
            name for name in (*self.gateways, *self.layout.services) if name.partition("-")[0] == "gateway"
        }
        self.proxies = {
            (side, name): self._stack.enter_context(Proxy(server.port))
            for side in ("stages", *sorted(gateways))
            for name, server in through
        }
        self.store: ObjectStore = open_store(StoreSettings(url=SecretStr(self.s3.url)))

    def _start_services(self) -> None:
        for name in dict.fromkeys((*self.gateways, *self.layout.services)):
            self.processes[name] = self._make(name)
        for gateway in self.of("gateway"):
            if DECODER in gateway.environment:
                gateway.environment[DECODER] = self.processes["decoder"].url
        for name, process in self.processes.items():
            process.held = name in self.layout.held
            if not process.held:
                process.launch()  # All at once: imports take most of the time.
        keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        keeper.start()
        self.wait_until_serving()

    def _make(self, name: str) -> RestartedService:
        service = name.partition("-")[0]
        side = name if service == "gateway" else "stages"
        settings = {
            **SETTINGS,
            VARIABLE: ";".join(self.layout.failpoints),
            STATE_VARIABLE: str(self.state),
            "SMALTI_BROKER_JOURNAL": str(self.folder / "workers"),
            **self.layout.settings,
        }
        if service == "gateway":
            settings["SMALTI_GATEWAY_DATABASE"] = (
                self._address(self.postgres, side, "database")
                if self.postgres
                else f"sqlite:///{self.folder / 'gateway.sqlite3'}"
            )
        if release := self.layout.releases.get(name):
            settings |= release_environment(release)
        return RestartedService(
            service,
            broker=self._address(self.broker, side, "broker"),
            store=self._address(self.s3, side, "store"),
            model=self.models[self.layout.models.get(name, FIRST)].path,
            folder=self.folder / name,
            environment=settings,
            command=(sys.executable, "-m", self.layout.modules[name]) if name in self.layout.modules else (),
        )

    def _address(self, server: Server, side: str, name: str) -> str:
        """Returns the URL of a server through the proxy of a side, if it has one."""
        proxy = self.proxies.get((side, name))
        return server.url.replace(f"{HOST}:{server.port}", f"{HOST}:{proxy.port}") if proxy else server.url

    def _keep(self) -> None:
        """Restarts processes that have ended."""
        while not self._closing.wait(WATCH_SECONDS):
            with self._lock:
                if self._closing.is_set():
                    return
                for name, process in self.processes.items():
                    if (code := process.ended()) is not None:
                        self.ends.append(Ended(name, code, time.time()))
                    if not process.pid and not process.held:
                        process.launch()
