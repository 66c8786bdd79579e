"""The chart of a release in a registry of OCI: Debian's docker-registry, and both Helms."""

import hashlib
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.chart import CHART, HELMS, helm
from harness.servers import free_port
from harness.waiting import wait_until

pytestmark = [pytest.mark.deploy, pytest.mark.slow, pytest.mark.server]

CONFIGURATION = """\
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """The address of a registry."""
    program = shutil.which("docker-registry")
    assert program, "docker-registry is not installed; install Debian's package of that name"
    port = free_port()
    file = tmp_path / "registry.yml"
    file.write_text(CONFIGURATION.format(folder=tmp_path / "registry", port=port))
    process = subprocess.Popen([program, "serve", file], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        wait_until(answers)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.parametrize("program", HELMS)
def test_chart_is_pushed_and_comes_back_the_same(registry: str, tmp_path: Path, program: str) -> None:
    done = helm(program, "package", str(CHART), "--version", "9.8.7", "--destination", str(tmp_path))
    assert done.returncode == 0, done.stderr
    package = tmp_path / "smalti-9.8.7.tgz"
    place = f"oci://{registry}/charts"
    done = helm(program, "push", "--plain-http", str(package), place)
    assert done.returncode == 0, done.stderr
    back = tmp_path / "back"
    back.mkdir()
    done = helm(
        program, "pull", "--plain-http", f"{place}/smalti", "--version", "9.8.7", "--destination", str(back)
    )
    assert done.returncode == 0, done.stderr
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (package, back / package.name)}
    assert len(digests) == 1
    done = helm(program, "pull", "--plain-http", f"{place}/smalti", "--version", "9.9.9")
    assert done.returncode != 0
