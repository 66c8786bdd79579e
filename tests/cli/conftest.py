"""What the tests of several commands share: the whole system."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from harness.processes import LIMIT, started
from smalti.registry.folder import ModelFolder
from smalti.up.ports import DEFAULT_PORTS
from smalti.up.servers import free_port


@pytest.fixture(scope="module")
def system(worded: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The whole system with a tiny model; the address of its gateway."""
    folder = tmp_path_factory.mktemp("system")
    ports = {name: free_port() for name in DEFAULT_PORTS}
    command = [
        sys.executable,
        "-m",
        "smalti",
        "up",
        "--model",
        str(worded.path),
        "--data",
        str(folder / "data"),
    ]
    command += ["--ports", ",".join(f"{name}={port}" for name, port in ports.items())]
    with (
        (folder / "output").open("wb") as output,
        started(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL) as process,
    ):
        deadline = time.monotonic() + LIMIT
        while "Ctrl-C stops it all" not in (said := (folder / "output").read_text()):
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.1)
        yield f"127.0.0.1:{ports['gateway']}"
        process.send_signal(signal.SIGINT)
        process.wait(LIMIT)
