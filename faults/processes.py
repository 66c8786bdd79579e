"""The services of the whole system as processes that can be harmed."""

import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from harness.service_process import ONCE, ServiceProcess
from smalti.rpc.channel import blocking_channel


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    name: str
    code: int
    """The exit code; negative for a signal."""
    when: float


class RestartedService(ServiceProcess):
    """A service that is restarted whenever it ends, as by an orchestrator."""

    held = False
    """Whether it must not be restarted."""

    @property
    def pid(self) -> int:
        """The id of the running process; 0 without one."""
        return next(iter(self.pids), 0)

    @property
    def goes_on(self) -> bool:
        """Whether the process is not held, and not suspended."""
        if self.held:
            return False
        try:
            return not self.pid or psutil.Process(self.pid).status() != psutil.STATUS_STOPPED
        except psutil.Error:
            return True  # It has ended just now, and is restarted.

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process, if it runs."""
        for process in list(self._processes):
            process.send_signal(number)

    def ended(self) -> int | None:
        """Returns the exit code of a process that has ended; None while it runs or before it was started."""
        if not self._processes or (code := self._processes[0].poll()) is None:
            return None
        self._processes = []
        return code

    def state(self) -> str:
        """Returns its health, such as SERVING; "away" if it does not answer."""
        try:
            return health_pb2.HealthCheckResponse.ServingStatus.Name(self.health())
        except grpc.RpcError:
            return "away"

    def states(self, seconds: float) -> list[str]:
        """Returns the changes of its health until it stops answering, for at most `seconds`."""
        seen: list[str] = []
        with blocking_channel(self.url, ONCE) as channel, suppress(grpc.RpcError):
            stub: Any = health_pb2_grpc.HealthStub(channel)
            for said in stub.Watch(health_pb2.HealthCheckRequest(), timeout=seconds):
                seen.append(health_pb2.HealthCheckResponse.ServingStatus.Name(said.status))
        return seen

    def serves(self) -> bool:
        """Returns whether its health is SERVING."""
        return self.running and self.state() == "SERVING"
