"""The processes of the system on one machine, and their settings."""

import fcntl
import json
import os
import secrets
import shlex
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import psutil

from smalti.errors import ServerStartError
from smalti.rpc.channel import blocking_channel
from smalti.up.plan import Worker
from smalti.up.ports import WEB, Ports
from smalti.up.servers import HOST, S3Server, Server, ValkeyServer
from smalti.up.services import HEALTH_SECONDS, PROBE, ServiceServer, WebServer, service_command
from smalti.v1.image_pb2 import ListModelsRequest
from smalti.v1.image_pb2_grpc import ImageServiceStub

GATEWAY = "gateway"
LOGS = "logs"

_CLEARED = (
    *(f"SMALTI_RPC_{name}" for name in ("HEALTH_PORT", "TLS_CERTIFICATE", "TLS_KEY", "TLS_CLIENT_CA", "TLS")),
    *(f"SMALTI_RPC_TLS_{name}" for name in ("CA", "CLIENT_CERTIFICATE", "CLIENT_KEY", "SERVER_NAME")),
    *(f"SMALTI_BROKER_{name}" for name in ("CA", "CERTIFICATE", "KEY")),
    *(f"SMALTI_BROKER_SIGNING_{name}" for name in ("KEY", "CERTIFICATE", "TRUSTED")),
    *(f"SMALTI_STORE_{name}" for name in ("ACCESS_KEY", "SECRET_KEY", "PUBLIC_URL", "CA")),
    *(f"SMALTI_WEB_{name}" for name in ("PUBLIC_URL", "TLS_CERTIFICATE", "TLS_KEY", "PROXIES", "STORE_URLS")),
)
"""Settings of systems on several machines, which are cleared here."""

_DEFAULTS = {
    # Short, since a user waits in the terminal. Unfinished work is done after the next start.
    "SMALTI_RPC_GRACE": "5",
    "SMALTI_BROKER_DRAIN": "5",
    "SMALTI_SERVICE_GRACE": "9",
    "SMALTI_WEB_GRACE": "5",
    "SMALTI_RPC_REFLECTION": "1",
    # All services are of this version.
    "SMALTI_MESSAGES_WRITE": "3",
    # The services share the cores of one machine, so idle threads must not spin.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Settings that differ from the services' defaults unless the user sets them."""


class System:
    """The processes of the system."""

    def __init__(
        self,
        data: Path,
        ports: Ports,
        workers: Sequence[Worker],
        *,
        command: Callable[[str], Sequence[str]] = service_command,
    ) -> None:
        """Creates the servers without starting them.

        Args:
            data: the folder of all data.
            ports: the ports; `move` changes them.
            workers: the processes of the stages; the first serves the default model.
            command: returns the command line of a service by its name.
        """
        self.data = data
        self.ports = ports
        keys = _keys(data / "keys.json")
        self.valkey = ValkeyServer(data / "valkey", ports["valkey"], password=keys["broker_password"])
        self.s3 = S3Server(
            data / "s3", ports["s3"], access_key=keys["access_key"], secret_key=keys["secret_key"]
        )
        self.workers = {worker.name: worker for worker in workers}
        """The processes of the stages by their names."""
        self.models = tuple({each.revision: each for worker in workers for each in worker.models}.values())
        """The models, the default one first."""
        self._url_key = keys["url_key"]
        self._moving = threading.Lock()
        kinds = {GATEWAY: GATEWAY} | {worker.name: worker.service for worker in workers}
        self.services = {
            name: ServiceServer(name, data / name, ports[name], self._environment(name), *command(kind))
            for name, kind in kinds.items()
        }
        self.web = WebServer(WEB, data / WEB, ports[WEB], self._environment(WEB), *command(WEB))
        for server in self.servers:
            server.log = data / LOGS / f"{server.name}.log"

    @property
    def servers(self) -> list[Server]:
        """All servers."""
        return [server for group in self.groups for server in group]

    @property
    def groups(self) -> list[list[Server]]:
        """The groups of servers for the `Supervisor`: infrastructure, stages, gateway, web."""
        workers: list[Server] = [self.services[name] for name in self.workers]
        return [[self.valkey, self.s3], workers, [self.services[GATEWAY]], [self.web]]

    @property
    def gateway(self) -> str:
        """The address of the gateway, as host:port."""
        return f"{HOST}:{self.ports[GATEWAY]}"

    def unknown_models(self) -> list[str]:
        """Returns the models that the gateway does not list yet; empty if it cannot be asked.

        It learns of all but its own from what the workers say.
        """
        names = {model.name for model in self.models}
        with blocking_channel(self.gateway, PROBE) as channel:
            stub: Any = ImageServiceStub(channel)
            try:
                listed = stub.ListModels(ListModelsRequest(page_size=1000), timeout=HEALTH_SECONDS).models
            except grpc.RpcError as error:
                code = error.code() if isinstance(error, grpc.Call) else None
                waits = code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
                return sorted(names) if waits else []
        return sorted(names - {model.reference.name for model in listed})

    def memory(self, server: Server) -> int:
        """Returns the bytes of memory that a server has now; 0 if that is not known."""
        found = 0
        for pid in server.pids:
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                found += sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))
        return found

    def move(self, server: Server) -> list[str]:
        """Takes other ports instead of free ones of a server that another program has taken meanwhile.

        The settings of all services are as if they had been so from the start; those that run are outdated.

        Returns:
            a line for each port, none if the server has lost no port that may change.
        """
        name = "s3" if server is self.s3 else server.name
        with self._moving:
            lines = self.ports.replace_taken(each for each in (name, f"{name}-metrics") if each in self.ports)
            if lines:
                server.port = self.ports[name]
                for each in (*self.services.values(), self.web):
                    each.environment = self._environment(each.name)
        if not lines and server.move():
            lines = [f"{name} has lost a port among its parts to another program, and takes others"]
        return lines

    def _environment(self, name: str) -> dict[str, str]:
        """Returns the settings of a service."""
        model = self.workers[name].models[0] if name in self.workers else self.models[0]
        environment = {
            "SMALTI_MODEL": str(model.path.absolute()),
            "SMALTI_BROKER_URL": self.valkey.url,
            "SMALTI_BROKER_JOURNAL": str(self.data / "workers"),
            "SMALTI_STORE_URL": self.s3.url,
            "SMALTI_RPC_HOST": HOST,
            "SMALTI_METRICS_HOST": HOST,
            "SMALTI_METRICS_PORT": str(self.ports[f"{name}-metrics"]),
            **dict.fromkeys(_CLEARED, ""),
            **{name: value for name, value in _DEFAULTS.items() if name not in os.environ},
        }
        if name == WEB:
            return environment | {
                "SMALTI_SERVER": self.gateway,
                "SMALTI_WEB_HOST": HOST,
                "SMALTI_WEB_PORT": str(self.ports[WEB]),
                "SMALTI_WEB_SIGNING_KEY": self._url_key,
            }
        environment["SMALTI_RPC_PORT"] = str(self.ports[name])
        environment["SMALTI_RPC_ADVERTISE"] = f"{HOST}:{self.ports[name]}"
        if name == GATEWAY:
            environment |= {
                "SMALTI_GATEWAY_DATABASE": f"sqlite:///{self.data / name / 'jobs.sqlite3'}",
                "SMALTI_GATEWAY_DECODER": f"{HOST}:{self.ports['decoder']}",
                "SMALTI_GATEWAY_REFINER": "1",
            }
        return environment


@contextmanager
def owned(data: Path) -> Iterator[int]:
    """Creates a data folder that other users cannot read, and locks it while the block runs.

    In the block, files and sockets of this process and of those that it starts are their user's alone, also beside the
    folder: SeaweedFS has sockets in `/tmp`. The block gets the mask of file modes from before.

    Raises:
        ServerStartError: another process has locked it, which is named, it belongs to another user, or it cannot be
            written.
    """
    before = os.umask(0o077)
    try:
        with _locked(data):
            yield before
    finally:
        os.umask(before)


@contextmanager
def _locked(data: Path) -> Iterator[None]:
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if data.stat().st_uid != os.geteuid():
            raise ServerStartError(f"{data} belongs to another user; give a folder of your own with --data")
        data.chmod(0o700)
        file = (data / "lock").open("a+")
    except OSError as error:
        problem = f"{error.strerror}: {error.filename}"
        raise ServerStartError(
            f"{data} cannot be written ({problem}); give another folder with --data"
        ) from error
    with file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ServerStartError(f"{data} is in use by {_process(lock.read())}") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def begin_logs(data: Path) -> None:
    """Renames the logs of the last run to `*.log.before`."""
    folder = data / LOGS
    folder.mkdir(exist_ok=True)
    for log in folder.glob("*.log"):
        log.replace(log.with_suffix(".log.before"))


def _process(pid: str) -> str:
    try:
        return f"process {pid} ({shlex.join(psutil.Process(int(pid)).cmdline())})"
    except (ValueError, psutil.Error):
        return "another process"


def _keys(file: Path) -> dict[str, str]:
    """Returns the keys of the store and of the URLs of pictures, and the broker's password; creates missing ones."""
    new = {
        name: secrets.token_hex(size)
        for name, size in (("access_key", 8), ("secret_key", 24), ("url_key", 32), ("broker_password", 24))
    }
    kept: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    keys = {**new, **kept}
    if keys != kept:
        temporary = file.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            json.dump(keys, stream)
        temporary.replace(file)
    return keys
