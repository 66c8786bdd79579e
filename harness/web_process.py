"""The web service as a process: `python -m smalti.services.web` on a free port of 127.0.0.1."""

import ssl
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx2

from harness.servers import HOST, Server

COMMAND = (sys.executable, "-m", "smalti.services.web")


class WebProcess(Server):
    """The web service; ready when it is alive."""

    name = "web"
    stop_seconds = 30.0

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        """Creates the service without starting it.

        Args:
            folder: the folder of the log.
            environment: its settings.
        """
        super().__init__(folder)
        self._environment = {"SMALTI_WEB_PORT": str(self.port), "SMALTI_LOG_FORMAT": "json", **environment}
        # The certificates of tests name no host and have no authority.
        self._context = ssl.create_default_context()
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE

    @property
    def url(self) -> str:
        """The address of the service."""
        scheme = "https" if "SMALTI_WEB_TLS_KEY" in self._environment else "http"
        return f"{scheme}://{HOST}:{self.port}"

    def get(self, path: str) -> httpx2.Response:
        """Gets a path, with any certificate."""
        with httpx2.Client(verify=self._context) as client:
            return client.get(f"{self.url}{path}")

    def end(self) -> int:
        """Sends SIGTERM, and returns the exit code."""
        self._processes[0].terminate()
        return self._processes[0].wait(self.stop_seconds)

    def _launch(self) -> None:
        self._run(*COMMAND, environment=self._environment)

    def _answers(self) -> bool:
        return self.get("/healthz").status_code == 200
