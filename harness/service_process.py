"""A service as a process: `python -m smalti.services.<name>` on a free port of 127.0.0.1."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from harness.servers import HOST, Server
from smalti.rpc.channel import blocking_channel
from smalti.rpc.settings import RpcSettings

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ONCE = RpcSettings(attempts=1)


class ServiceProcess(Server):
    """A service; ready when its health is SERVING."""

    start_seconds = 120.0
    stop_seconds = 60.0

    def __init__(
        self,
        service: str,
        *,
        broker: str,
        store: str,
        model: Path,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        command: tuple[str, ...] = (),
        rpc: RpcSettings = ONCE,
    ) -> None:
        """Creates the service without starting it.

        Args:
            service: the name of the service, such as "encoder".
            broker: the URL of the broker.
            store: the URL of the object store.
            model: the folder of the model.
            folder: the folder of the log; None creates a temporary folder.
            environment: further settings; may be changed between two starts.
            command: the command line; by default `python -m smalti.services.<service>`.
            rpc: how its health is asked for.
        """
        self.name = service  # type: ignore[misc]
        super().__init__(folder)
        self.environment = dict(environment or {})
        self._rpc = rpc
        self._command = command or (sys.executable, "-m", f"smalti.services.{service}")
        self._settings = {
            "SMALTI_BROKER_URL": broker,
            "SMALTI_STORE_URL": store,
            "SMALTI_MODEL": str(model),
            "SMALTI_RPC_PORT": str(self.port),
            "SMALTI_BROKER_RETRY_FIRST": "0.1",
            "SMALTI_BROKER_JOURNAL": str(self.folder / "workers"),
        }

    @property
    def url(self) -> str:
        """The address of the service, as host:port."""
        return f"{HOST}:{self.port}"

    def health(self, name: str = "") -> int:
        """Returns its health; raises `grpc.RpcError` if it does not answer.

        Args:
            name: "store" for the process together with its object store.
        """
        with blocking_channel(self.url, self._rpc) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            return int(stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5).status)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends a signal, and waits for the end; returns the exit code."""
        self.tell(number)
        return self.wait()

    def tell(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Sends the process a signal."""
        self._processes[0].send_signal(number)

    def wait(self, seconds: float = 60.0) -> int:
        """Waits until the process ends; returns the exit code."""
        code = self._processes[0].wait(seconds)
        self._processes = []
        return code

    def launch(self) -> None:
        """Starts the process without waiting for it; see `wait_until_ready`."""
        self._launch()

    def wait_until_ready(self) -> None:
        """Waits until its health is SERVING; raises `ServerStartError` if it ends or takes too long."""
        self._wait_until(self._answers, self.start_seconds, "does not answer")

    def run(self) -> "subprocess.CompletedProcess[str]":
        """Runs a process that should fail to start; returns its exit code and output."""
        environment = {**os.environ, **self._settings, **self.environment}
        return subprocess.run(
            self._command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    def _launch(self) -> None:
        self._run(*self._command, environment={**self._settings, **self.environment})

    def _answers(self) -> bool:
        return self.health() == SERVING
