"""Which build of PyTorch `make` installs."""

import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from harness.paths import ROOT
from harness.servers import HOST
from scripts import install_torch

pytestmark = pytest.mark.process


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """An index that has a page for torch."""
    (tmp_path / "torch").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer((HOST, 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{HOST}:{server.server_port}"
        server.shutdown()


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets pip know no wheels and no index."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setattr(install_torch, "MAX_WAIT", 2.0)


@pytest.mark.usefixtures("elsewhere")
def test_cpu_build_comes_from_an_index_that_answers(index: str) -> None:
    assert install_torch.arguments("9.9.9", index, default=False) == [
        "--extra-index-url",
        index,
        "torch==9.9.9+cpu",
    ]


@pytest.mark.usefixtures("elsewhere")
def test_wheel_at_hand_is_taken_before_any_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(tmp_path, "9.9.9+cpu")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert install_torch.arguments("9.9.9", "http://127.0.0.1:1", default=False) == ["torch==9.9.9+cpu"]


@pytest.mark.usefixtures("elsewhere")
def test_index_that_is_away_is_not_waited_for() -> None:
    with socket.create_server((HOST, 0)) as silent:
        for address in (f"http://{HOST}:{silent.getsockname()[1]}", "http://127.0.0.1:1"):
            assert install_torch.arguments("9.9.9", address, default=False) == ["torch==9.9.9"]


def test_machine_with_a_gpu_takes_the_default_build() -> None:
    assert install_torch.arguments("9.9.9", "http://127.0.0.1:1", default=True) == ["torch==9.9.9"]


def test_torch_is_pinned_and_installed() -> None:
    assert install_torch.pinned_version() == install_torch.installed_version()
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "install_torch.py"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def wheel(folder: Path, version: str) -> None:
    """Writes an empty wheel of torch."""
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as archive:
        info = f"torch-{version}.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
