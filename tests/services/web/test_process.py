"""The web service as a process: start, TLS, and end."""

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx2
import pytest

from harness.image_service import ServedGateway, served_gateway
from harness.servers import HOST, Server
from harness.signing import certificate

pytestmark = pytest.mark.process

COMMAND = (sys.executable, "-m", "smalti.services.web")


class WebProcess(Server):
    """The web service; ready when it is alive."""

    name = "web"
    stop_seconds = 30.0

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        super().__init__(folder)
        self._environment = {"SMALTI_WEB_PORT": str(self.port), "SMALTI_LOG_FORMAT": "json", **environment}
        # The certificate names no host and has no authority.
        self._context = ssl.create_default_context()
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}"

    def get(self, path: str) -> httpx2.Response:
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


@pytest.fixture
def gateway() -> Iterator[ServedGateway]:
    with served_gateway() as served:
        yield served


def test_process_serves_https_and_drains(tmp_path: Path, gateway: ServedGateway) -> None:
    key, cert = certificate(tmp_path, "web")
    environment = {
        "SMALTI_SERVER": gateway.address,
        "SMALTI_WEB_TLS_CERTIFICATE": str(cert),
        "SMALTI_WEB_TLS_KEY": str(key),
    }
    with WebProcess(tmp_path / "web", environment) as process:
        assert process.get("/readyz").status_code == 200
        assert [model["id"] for model in process.get("/v1/models").json()["data"]] == ["wire"]
        assert process.end() == 0
        log = process.log.read_text()
    assert f"web is ready at https://127.0.0.1:{process.port}" in log
    assert "web has ended" in log
    assert "Traceback" not in log


def test_invalid_setting_is_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "SMALTI_WEB_TLS_CERTIFICATE": "/none.pem", "SMALTI_WEB_TLS_KEY": "/none.pem"}
    done = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "smalti web: SMALTI_WEB_TLS_CERTIFICATE: /none.pem with /none.pem cannot be used: "
    )
    assert done.stderr.count("\n") == 1
