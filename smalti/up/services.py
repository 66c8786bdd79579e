"""The services as processes of ours: `python -m smalti.services.<name>`, on 127.0.0.1."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from smalti.rpc.channel import blocking_channel
from smalti.rpc.settings import RpcSettings
from smalti.up.servers import HOST, Server

HEALTH_SECONDS = 2.0
# Of a probe nothing of the environment's holds: the services that are started here speak without TLS.
_PROBE = RpcSettings.model_construct(attempts=1)


def service_command(name: str) -> tuple[str, ...]:
    """Returns the command line of a service, such as "encoder"."""
    return sys.executable, "-m", f"smalti.services.{name}"


class ServiceServer(Server):
    """A service; it answers when its health says that it serves."""

    start_seconds = 240.0
    stop_seconds = 15.0

    def __init__(
        self, name: str, folder: Path, port: int, environment: Mapping[str, str], *command: str
    ) -> None:
        """Makes the service; `start` starts it.

        Args:
            name: the service's, such as "encoder".
            folder: where it keeps what it keeps.
            port: where it listens for gRPC.
            environment: its settings; those of this process hold beside them.
            command: what is run in place of `python -m smalti.services.<name>`.
        """
        self.name = name  # type: ignore[misc]
        super().__init__(folder, port)
        self._environment = dict(environment)
        self._command = command or service_command(name)

    @property
    def url(self) -> str:
        """Where it is called, as host:port."""
        return f"{HOST}:{self.port}"

    def _launch(self) -> None:
        # Paths in the user's environment are relative to where the user is.
        self._run(*self._command, environment=self._environment, cwd=Path.cwd())

    def _answers(self) -> bool:
        with blocking_channel(self.url, _PROBE) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # Its stubs do not tell of its methods.
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_SECONDS)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
