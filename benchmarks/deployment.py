"""The whole system as processes on this machine: broker, store, stages and gateway."""

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from harness.servers import S3Server, ValkeyServer
from harness.service_process import ServiceProcess

STAGES: Final = ("encoder", "generator", "decoder", "ranker")


class Deployment:
    """Runs the system while its context is entered."""

    def __init__(
        self,
        folder: Path,
        model: Path,
        *,
        stages: Sequence[str] = STAGES,
        idle: bool = False,
        settings: Mapping[str, str] | None = None,
        commands: Mapping[str, Sequence[str]] | None = None,
        store: S3Server | None = None,
    ) -> None:
        """Prepares the processes without starting them.

        Args:
            folder: folder for data and logs.
            model: folder of the model.
            stages: the stages to run.
            idle: use engines that do no work (`benchmarks.idle`).
            settings: further settings of the services.
            commands: modules that run instead of services, by the name of the service, with their arguments.
            store: the store; None makes one.
        """
        self.valkey = ValkeyServer(folder / "valkey")
        self.store = store or S3Server(folder / "store")
        self._folder = folder
        self._model = model
        self._stages = tuple(stages)
        self._idle = idle
        self._commands = dict(commands or {})
        self._settings = {
            "SMALTI_GATEWAY_DATABASE": f"sqlite:///{folder / 'gateway.sqlite3'}",
            "SMALTI_LOG_LEVEL": "warning",
            **(settings or {}),
        }
        self.services: dict[str, ServiceProcess] = {}
        self._running = ExitStack()

    @property
    def gateway(self) -> str:
        """URL of the gateway."""
        return self.services["gateway"].url

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for server in (self.valkey, self.store):
                stack.enter_context(server)
            for name in (*self._stages, "gateway"):
                self.services[name] = self._service(name)
                stack.callback(self.services[name].close)
            # In parallel, since most of a start is importing.
            with ThreadPoolExecutor(2) as starters:
                list(starters.map(ServiceProcess.start, self.services.values()))
            self._running = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def _service(self, name: str) -> ServiceProcess:
        settings = dict(self._settings)
        if name == "gateway" and "decoder" in self.services:
            settings["SMALTI_GATEWAY_DECODER"] = self.services["decoder"].url  # For previews.
        command = [f"smalti.services.{name}"]
        if name in self._commands:
            command = [*self._commands[name]]
        elif self._idle and name != "gateway":
            command = ["benchmarks.idle", name]
        return ServiceProcess(
            name,
            broker=self.valkey.url,
            store=self.store.url,
            model=self._model,
            folder=self._folder / name,
            environment=settings,
            command=(sys.executable, "-m", *command),
        )
