"""Services as child processes: `python -m smalti.services.<name>` on 127.0.0.1."""

import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from smalti.rpc.channel import blocking_channel
from smalti.rpc.settings import RpcSettings
from smalti.up.servers import HOST, Server

HEALTH_SECONDS = 2.0
# Ignores the environment: the services that are started here do not use TLS.
PROBE = RpcSettings.model_construct(attempts=1)

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks this machine, for which a proxy of the environment is not meant."""


def service_command(name: str) -> tuple[str, ...]:
    """Returns the command line of a service, such as "encoder"."""
    return sys.executable, "-m", f"smalti.services.{name}"


class ServiceServer(Server):
    """A service; ready when its health is SERVING."""

    start_seconds = 240.0
    stop_seconds = 15.0

    def __init__(
        self, name: str, folder: Path, port: int, environment: Mapping[str, str], *command: str
    ) -> None:
        """Creates the service without starting it.

        Args:
            name: the name of the service, such as "encoder".
            folder: the folder of its data.
            port: the port of its calls.
            environment: its settings, in addition to the environment of this process; `environment` may be set later,
                for the next start.
            command: the command line; by default `python -m smalti.services.<name>`.
        """
        self.name = name  # type: ignore[misc]
        super().__init__(folder, port)
        self.environment = environment
        self._launched = environment
        self._command = command or service_command(name)

    @property
    def url(self) -> str:
        """The address of the service, as host:port."""
        return f"{HOST}:{self.port}"

    @property
    def outdated(self) -> bool:  # noqa: D102
        return self.running and self._launched != self.environment

    def _launch(self) -> None:
        self._launched = self.environment
        # Paths in the user's environment are relative to the working directory.
        self._run(*self._command, environment=dict(self._launched), cwd=Path.cwd())

    def _answers(self) -> bool:
        with blocking_channel(self.url, PROBE) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # The types of the stub lack its methods.
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_SECONDS)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


class WebServer(ServiceServer):
    """The web service; ready when it says so over HTTP."""

    @property
    def url(self) -> str:
        """The URL of the page and the HTTP API."""
        return f"http://{HOST}:{self.port}"

    def _answers(self) -> bool:
        with _DIRECT.open(f"{self.url}/readyz", timeout=HEALTH_SECONDS) as answer:
            return bool(answer.status == 200)
