"""A stress test: signals at random instants to each long command. None hangs, none leaves a process or half a file."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from harness.image_service import ServedGateway, served_gateway
from harness.processes import started
from harness.waiting import wait_until
from smalti.entrance.signals import URGENT_SECONDS
from smalti.registry.folder import ModelFolder

pytestmark = [pytest.mark.slow, pytest.mark.server]

TRIALS = 20
"""Instants for each command."""
LIMIT = 60.0
"""Time in which a command must end after its first signal; what it does between two safe places fits in it."""
MARK = "SMALTI_TEST_MARK"


@pytest.fixture(scope="module")
def wire() -> Iterator[ServedGateway]:
    with served_gateway() as served:
        yield served


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(60):
        Image.effect_noise((96, 96), 40 + number).convert("RGB").save(folder / f"p{number}.png")
        (folder / f"p{number}.txt").write_text(f"a cloud called {number}")
    (folder.parent / "import.toml").write_text("resolution = 64\nvalidation = 0.2\n")
    return folder


def commands(tiny: ModelFolder, wire: ServedGateway, pictures: Path, out: Path) -> dict[str, list[str]]:
    model = ["--model", str(tiny.path)]
    return {
        "generate": ["generate", "a fox", *model, "--n", "2", "--candidates", "4", "--out", str(out)],
        "server": ["generate", "a fox", "--server", wire.address, "--out", str(out)],
        "import": [
            *("data", "import", str(pictures), str(out / "data")),
            *("--config", str(pictures.parent / "import.toml")),
        ],
        "models": ["models", "--words"],
        "doctor": ["doctor"],
        "up": ["up", *model, "--ports", "free", "--data", str(out / "up"), "--", "true"],
    }


def receives(process: "subprocess.Popen[str]") -> bool:
    """Returns whether a process has a handler for SIGTERM; before, its interpreter starts."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1) or process.poll() is not None


def left_over(mark: str) -> list[psutil.Process]:
    """Returns the processes that a command has left, by a variable that they inherit."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.mark.parametrize("name", ["generate", "server", "import", "models", "doctor", "up"])
def test_signals_at_random_instants(
    name: str, tiny: ModelFolder, wire: ServedGateway, pictures: Path, tmp_path: Path
) -> None:
    chance = random.Random(name)
    whole = 0.0
    for trial in range(-1, TRIALS):
        out = tmp_path / f"out{trial}"
        out.mkdir()
        mark = uuid.uuid4().hex
        command = [sys.executable, "-m", "smalti", *commands(tiny, wire, pictures, out)[name]]
        pipe, began = subprocess.PIPE, time.monotonic()
        environment = {**os.environ, MARK: mark}
        with started(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
            instant = chance.uniform(0.0, 1.0) * whole
            numbers = chance.choice([[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
            what = f"{name}: {numbers} after {instant:.2f} of {whole:.2f} s"
            limit = 240.0
            if trial >= 0:
                wait_until(lambda process=process: receives(process))  # type: ignore[misc]
                time.sleep(instant)
                for number in numbers:
                    process.send_signal(number)
                    time.sleep(0.05)
                limit = LIMIT if len(numbers) == 1 else URGENT_SECONDS + 20
            try:
                _, error = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                pytest.fail(f"{what}: it does not end")
            assert "Traceback" not in error, what
            # The second may come when the interpreter has already put back what signals do by default.
            assert process.returncode in (0, 128 + numbers[0], -numbers[-1]), f"{what}: {error}"
            with contextlib.suppress(AssertionError):
                wait_until(lambda mark=mark: not left_over(mark))  # type: ignore[misc]
            assert left_over(mark) == [], what
        if len(numbers) == 1 or trial < 0:
            assert not list(out.rglob("*.partial")), what
        whole = whole or time.monotonic() - began
