"""Which build of PyTorch `make` installs."""

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from harness.paths import ROOT
from harness.servers import HOST
from harness.wheels import write_wheel
from scripts import install_torch
from scripts.lock_files import LOCKS, load_lock, version_of

pytestmark = pytest.mark.process

AWAY = "http://127.0.0.1:1"


PYTHON = f"cp{sys.version_info.major}{sys.version_info.minor}"
HASH = "0" * 64
ENTRY = f"torch==9.9.9 \\\n    --hash=sha256:{HASH}\n"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """An index that has the CPU build for this Python, whose hash is `HASH`."""
    (tmp_path / "torch").mkdir()
    wheel = f"torch-9.9.9%2Bcpu-{PYTHON}-{PYTHON}-manylinux_2_28_x86_64.whl"
    (tmp_path / "torch" / "index.html").write_text(f'<a href="/{wheel}#sha256={HASH}">a wheel</a>')
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer((HOST, 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{HOST}:{server.server_port}"
        server.shutdown()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "torch.txt"


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets pip know no wheels and no index."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setattr(install_torch, "MAX_WAIT", 2.0)


@pytest.mark.usefixtures("elsewhere")
def test_cpu_build_comes_from_an_index_that_has_the_locked_one(index: str, file: Path) -> None:
    chosen = install_torch.arguments(ENTRY, index, default=False, file=file)
    assert chosen == ["--extra-index-url", index, "--requirement", str(file)]
    assert file.read_text() == f"torch==9.9.9+cpu --hash=sha256:{HASH}\n"


@pytest.mark.usefixtures("elsewhere")
def test_index_with_another_cpu_build_is_left_alone(index: str, file: Path) -> None:
    another = ENTRY.replace(HASH, "1" * 64)
    assert install_torch.arguments(another, index, default=False, file=file) == default_build(file)


@pytest.mark.usefixtures("elsewhere")
def test_wheel_at_hand_is_taken_before_any_index(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = write_wheel(tmp_path, "torch", "9.9.9+cpu")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    entry = ENTRY.replace(HASH, hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert install_torch.arguments(entry, AWAY, default=False, file=file) == ["--requirement", str(file)]
    # Its hash must be in the lock.
    assert install_torch.arguments(ENTRY, AWAY, default=False, file=file) == default_build(file)


@pytest.mark.usefixtures("elsewhere")
def test_index_that_is_away_is_not_waited_for(file: Path) -> None:
    with socket.create_server((HOST, 0)) as silent:
        for address in (f"http://{HOST}:{silent.getsockname()[1]}", AWAY):
            assert install_torch.arguments(ENTRY, address, default=False, file=file) == default_build(file)


def test_machine_with_a_gpu_takes_the_default_build(file: Path) -> None:
    assert install_torch.arguments(ENTRY, AWAY, default=True, file=file) == default_build(file)
    assert file.read_text() == f"torch===9.9.9 --hash=sha256:{HASH}\n"


def test_torch_is_locked_and_installed() -> None:
    locked = version_of(load_lock(LOCKS / "up.txt")["torch"])
    assert locked == install_torch.installed_version()
    done = subprocess.run(
        [sys.executable, "-m", "scripts.install_torch"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def default_build(file: Path) -> list[str]:
    return ["--requirement", str(file), "--requirement", str(LOCKS / "cuda.txt")]
