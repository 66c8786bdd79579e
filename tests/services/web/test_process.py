"""The web service as a process: start, TLS, and end."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.image_service import ServedGateway, served_gateway
from harness.signing import certificate
from harness.web_process import COMMAND, WebProcess
from smalti.doctor.probe import find_web_problem

pytestmark = pytest.mark.process


@pytest.fixture
def gateway() -> Iterator[ServedGateway]:
    with served_gateway() as served:
        yield served


def test_process_serves_https_and_drains(
    tmp_path: Path, gateway: ServedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, cert = certificate(tmp_path, "web")
    environment = {
        "SMALTI_SERVER": gateway.address,
        "SMALTI_WEB_TLS_CERTIFICATE": str(cert),
        "SMALTI_WEB_TLS_KEY": str(key),
    }
    with WebProcess(tmp_path / "web", environment) as process:
        assert process.get("/readyz").status_code == 200
        assert [model["id"] for model in process.get("/v1/models").json()["data"]] == ["wire"]
        monkeypatch.setenv("SMALTI_WEB_PORT", str(process.port))
        monkeypatch.setenv("SMALTI_WEB_TLS_CERTIFICATE", str(cert))
        monkeypatch.setenv("SMALTI_WEB_TLS_KEY", str(key))
        assert find_web_problem() == ""
        assert process.end() == 0
        assert find_web_problem().startswith(f"127.0.0.1:{process.port} does not answer: ")
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
