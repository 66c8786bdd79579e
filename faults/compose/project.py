"""The Compose file as it is started, harmed and taken away on this machine's Docker engine."""

import json
import os
import shlex
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from faults.deployed.programs import CALL_SECONDS, ProgramError, run
from faults.deployed.system import DeployedSystem
from harness.paths import ROOT
from harness.servers import free_port
from harness.waiting import wait_until
from smalti.registry.folder import ModelFolder

DEPLOY: Final = ROOT / "deploy"
PROOF: Final = Path(__file__).with_name("proof.yaml")
SERVICE: Final = "com.docker.compose.service"
START_SECONDS: Final = 1200.0
LOOK_SECONDS: Final = 0.5


class Project:
    """A copy of `deploy/compose/` with secrets and data of its own."""

    def __init__(self, folder: Path, *, name: str, compose: Sequence[str], setup: Sequence[str]) -> None:
        """Writes settings and secrets, and starts nothing.

        Args:
            folder: new folder for the copy.
            name: name of the project.
            compose: Docker Compose.
            setup: options of `deploy/compose/setup`.
        """
        self._folder = folder / "compose"
        shutil.copytree(DEPLOY / "compose", self._folder, ignore=shutil.ignore_patterns("secrets", ".env"))
        shutil.copytree(DEPLOY / "monitoring", folder / "monitoring")
        run([str(self._folder / "setup"), *setup])
        self._name = name
        self._ports = {each: str(free_port()) for each in ("LISTEN", "GATEWAY_PORT", "STORE_PORT")}
        files = ["--file", str(self._folder / "compose.yaml"), "--file", str(PROOF)]
        self._compose = [*compose, "--project-name", name, "--project-directory", str(self._folder), *files]

    def up(self, **settings: str) -> float:
        """Starts what does not run as these settings say, waits until it is healthy, and returns the seconds."""
        began = time.monotonic()
        self._call("up", "--detach", "--wait", seconds=START_SECONDS, settings=settings)
        return time.monotonic() - began

    def down(self) -> None:
        """Removes everything, with the data."""
        self._call("down", "--volumes", "--timeout", "20", seconds=300)

    def system(self, models: Mapping[str, ModelFolder]) -> DeployedSystem:
        """Returns the system as its clients on this machine see it."""
        keys = [
            (self._folder / "secrets" / f"SMALTI_STORE_{kind}_KEY").read_text(encoding="utf-8").strip()
            for kind in ("ACCESS", "SECRET")
        ]
        return DeployedSystem(
            models,
            gateway=f"127.0.0.1:{self._ports['GATEWAY_PORT']}",
            web=f"http://127.0.0.1:{self._ports['LISTEN']}",
            store=f"127.0.0.1:{self._ports['STORE_PORT']}",
            login=":".join(keys),
        )

    def services(self) -> dict[str, dict[str, Any]]:
        """Returns what Compose makes of each service that is started, by its name."""
        found: dict[str, dict[str, Any]] = json.loads(self._call("config", "--format", "json"))["services"]
        return found

    def containers(self) -> dict[str, dict[str, Any]]:
        """Returns what the engine says of each container, by the name of its service."""
        label = f"label=com.docker.compose.project={self._name}"
        ids = run(["docker", "ps", "--all", "--quiet", "--filter", label]).split()
        found = json.loads(run(["docker", "inspect", *ids])) if ids else []
        return {each["Config"]["Labels"][SERVICE]: each for each in found}

    def kill(self, service: str) -> None:
        """Kills the first process of a container, as the kernel does when memory runs out."""
        os.kill(self.containers()[service]["State"]["Pid"], signal.SIGKILL)

    def wait_until_healthy(self, *, seconds: float, but: Mapping[str, int] | None = None) -> float:
        """Waits until every container is healthy, and returns the seconds.

        Args:
            seconds: limit of time.
            but: process ids, by the names of services, that must have gone.
        """
        began, services = time.monotonic(), self.services().keys()

        def look() -> bool:
            time.sleep(LOOK_SECONDS)
            try:
                states = {name: each["State"] for name, each in self.containers().items()}
            except ProgramError:
                return False  # The engine is away for a moment.
            return states.keys() == services and all(
                state.get("Health", {}).get("Status") == "healthy" and state["Pid"] != (but or {}).get(name)
                for name, state in states.items()
            )

        wait_until(look, seconds, problem=f"not every container is healthy after {seconds:.0f} s")
        return time.monotonic() - began

    def _call(
        self, *arguments: str, seconds: float = CALL_SECONDS, settings: Mapping[str, str] | None = None
    ) -> str:
        ports = self._ports | {"LISTEN": f"127.0.0.1:{self._ports['LISTEN']}"}
        environment = {**os.environ, **ports, **(settings or {})}
        return run([*self._compose, *arguments], seconds=seconds, environment=environment)


def restart(command: str) -> float:
    """Restarts the engine by a command of the caller, and returns the seconds until it answers."""
    began = time.monotonic()
    run(shlex.split(command), seconds=START_SECONDS)

    def answers() -> bool:
        time.sleep(LOOK_SECONDS)
        try:
            return bool(run(["docker", "version", "--format", "{{.Server.Version}}"]))
        except ProgramError:
            return False

    wait_until(answers, START_SECONDS, problem="the engine does not answer after its restart")
    return time.monotonic() - began
