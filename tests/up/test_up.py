"""`smalti up` as a process, with real Valkey and SeaweedFS, and services that only answer health checks."""

import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from harness.bare_service import FOLDER
from harness.processes import kill
from harness.waiting import wait_until
from smalti.cli import run
from smalti.cli.up import show
from smalti.errors import InvalidInputError
from smalti.messages import Stage
from smalti.registry.folder import ModelFolder
from smalti.registry.routes import route_keys
from smalti.testing.model import tiny_model
from smalti.up.command import guarded
from smalti.up.plan import plan_workers
from smalti.up.ports import DEFAULT_PORTS, SERVICES, WEB, holder, read_ports
from smalti.up.servers import free_port, is_free
from smalti.up.system import System, owned

pytestmark = pytest.mark.server

LIMIT = 60.0


class Up:
    """`smalti up` as a process."""

    def __init__(
        self,
        folder: Path,
        model: Path,
        *command: str,
        ports: str = "free",
        data: Path | None = None,
        others: Sequence[Path] = (),
    ):
        self.folder = folder
        self.data = data or folder / "data"
        self.output = folder / f"output-{time.monotonic_ns()}"
        models = [option for path in (model, *others) for option in ("--model", str(path))]
        options = [*models, "--data", str(self.data), "--ports", ports]
        with self.output.open("wb") as output:
            self.process = psutil.Popen(
                guarded(
                    [
                        sys.executable,
                        "-m",
                        "harness.bare_up",
                        *options,
                        *(("--", *command) if command else ()),
                    ]
                ),
                stdout=output,
                stderr=subprocess.STDOUT if not command else None,
                stdin=subprocess.DEVNULL,
                env={**os.environ, FOLDER: str(folder), "COLUMNS": "200"},
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.output.read_text()

    @property
    def events(self) -> list[str]:
        file = self.folder / "events"
        return file.read_text().splitlines() if file.exists() else []

    def ready(self) -> "Up":
        wait_until(
            lambda: "Ctrl-C stops it all" in self.said or self.process.poll() is not None, problem="not ready"
        )
        assert self.process.poll() is None, self.said
        return self

    def children(self) -> list[psutil.Process]:
        try:
            return list(self.process.children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    def wait(self) -> tuple[int, list[psutil.Process]]:
        """Waits for the end; returns the exit status and all processes that the system had."""
        had: set[psutil.Process] = set()

        def ended() -> bool:
            had.update(self.children())
            return self.process.poll() is not None

        wait_until(ended, problem="it does not end")
        return int(self.process.returncode), list(had)

    def child(self, name: str) -> psutil.Process:
        return next(child for child in self.children() if name in " ".join(child.cmdline()))

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return int(self.process.wait(LIMIT))


@pytest.fixture
def up(tmp_path: Path, tiny: ModelFolder) -> Iterator[Callable[..., Up]]:
    """Starts systems, and kills them in the end if they still run."""
    started: list[Up] = []

    def start(*command: str, **options: Any) -> Up:
        started.append(Up(tmp_path, tiny.path, *command, **options))
        return started[-1]

    yield start
    for each in started:
        kill(each.process)


def gone(processes: list[psutil.Process]) -> bool:
    return all(not process.is_running() or process.status() == psutil.STATUS_ZOMBIE for process in processes)


def test_everything_runs_is_shown_and_ends_in_order_on_ctrl_c(
    up: Callable[..., Up], tmp_path: Path, tiny: ModelFolder
) -> None:
    ports = {name: free_port() for name in DEFAULT_PORTS}
    text = ",".join(f"{name}={port}" for name, port in ports.items())
    system = up(ports=text).ready()
    for name in (WEB, *SERVICES):
        assert f"127.0.0.1:{ports[name]}" in system.said
        assert f"http://127.0.0.1:{ports[f'{name}-metrics']}/metrics" in system.said
        assert f"{name} runs with {tiny.path} 127.0.0.1:{ports['s3']}/smalti" in system.events
        assert (system.data / "logs" / f"{name}.log").exists()
    assert {path.name for path in (system.data / "logs").iterdir()} >= {"valkey.log", "seaweedfs.log"}
    assert stat.S_IMODE((system.data / "keys.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(system.data.stat().st_mode) == 0o700
    children = system.children()
    assert len(children) == len(SERVICES) + 3  # The web service, the broker, and the store.
    assert system.said.startswith(f"Open http://127.0.0.1:{ports[WEB]}\n")
    # A second system finds the ports taken, names the holder, and changes nothing.
    log = system.data / "logs" / "gateway.log"
    before = log.stat().st_ino
    second = up(ports=text)
    assert second.process.wait(LIMIT) == 1
    gateway = system.child("harness.bare_service gateway")
    line = f"smalti up: port {ports['gateway']} of 127.0.0.1 (for gateway) is held by process {gateway.pid} ("
    assert line in second.said
    assert "harness.bare_service gateway" in second.said
    # A third system on other ports must not touch the data of the first.
    third = up()
    assert third.process.wait(LIMIT) == 1
    assert f"is in use by process {system.process.pid} (" in third.said
    assert third.said.count("\n") == 1
    assert log.stat().st_ino == before
    assert not gone(children)
    assert system.end() == 0
    assert gone(children)
    ends = [event for event in system.events if "end" in event]
    assert ends[:4] == [
        f"{name} {what}"
        for name in (WEB, "gateway")
        for what in ("ends while the broker is there", "has ended")
    ]
    assert {event.split()[0] for event in ends[4:]} == set(SERVICES[1:])
    assert len(ends) == 2 * (len(SERVICES) + 1)


def test_models_that_share_files_share_the_workers_of_these_files(
    up: Callable[..., Up], tmp_path: Path, tiny: ModelFolder
) -> None:
    """Tiny models with the VQGAN and CLIP of the first, and with others."""
    shared = tiny_model(tmp_path / "shared", seed=5, pictures_seed=1)
    alone = tiny_model(tmp_path / "alone", seed=6)
    assert route_keys(shared)[Stage.DECODE] == route_keys(tiny)[Stage.DECODE]
    system = up(others=(shared.path, alone.path)).ready()
    workers = {
        "encoder": tiny, "encoder-2": shared, "encoder-3": alone,
        "generator": tiny, "generator-2": shared, "generator-3": alone,
        "decoder": tiny, "decoder-2": alone, "ranker": tiny, "ranker-2": alone, "refiner": tiny, "refiner-2": alone,
    }  # fmt: skip
    lines = {
        line.split()[0]: line for line in map(str.rstrip, system.said.splitlines()) if "/metrics" in line
    }
    assert list(lines) == [WEB, "gateway", *workers]
    for name, model in workers.items():
        service = name.partition("-")[0]
        assert any(event.startswith(f"{service} runs with {model.path} ") for event in system.events)
        assert (system.data / "logs" / f"{name}.log").exists()
        assert " MB" in lines[name]
    for name_of_model, served in {
        "tiny": "encoder, generator, decoder, ranker, refiner",
        "shared": "encoder-2, generator-2, decoder, ranker, refiner",
        "alone": "encoder-3, generator-3, decoder-2, ranker-2, refiner-2",
    }.items():
        assert f"{name_of_model}: {served}" in map(str.rstrip, system.said.splitlines())
    runs = [event.split()[0] for event in system.events if " runs with " in event]
    assert Counter(runs) == Counter(
        {WEB: 1, "gateway": 1, **Counter(name.partition("-")[0] for name in workers)}
    )
    assert system.end() == 0


def test_processes_that_die_are_restarted(up: Callable[..., Up]) -> None:
    system = up().ready()
    for name in ("harness.bare_service decoder", "valkey-server"):
        victim = system.child(name)
        victim.kill()
        short = name.removeprefix("harness.bare_service ").removesuffix("-server")
        again = f"{short} answers again"
        wait_until(partial(lambda line: line in system.said, again), problem=f"{name} stays dead")
        assert f"smalti up: {short} has died (SIGKILL); restarting in 0.5 s" in system.said
        assert system.child(name).pid != victim.pid
    assert system.events.count(next(e for e in system.events if e.startswith("decoder runs"))) == 2
    assert system.end(signal.SIGTERM) == 0


def test_kill_9_leaves_nothing(up: Callable[..., Up]) -> None:
    system = up("sleep", "1000")
    wait_until(lambda: any("sleep" in child.name() for child in system.children()), problem="no command")
    children = system.children()
    assert len(children) == len(SERVICES) + 4  # The web service, the broker, the store, and the command.
    system.process.kill()
    wait_until(lambda: gone(children), problem="something is left")


def test_command_has_the_system_and_its_status_is_the_result(up: Callable[..., Up], tmp_path: Path) -> None:
    script = (
        "import os, sys; print(os.environ['SMALTI_SERVER'], os.environ['OPENAI_BASE_URL'], sys.executable, flush=True)"
        "; sys.exit(7)"
    )
    ports = f"gateway={(port := free_port())},web={(web := free_port())}," + ",".join(
        f"{name}=free" for name in DEFAULT_PORTS if name not in ("gateway", WEB)
    )
    system = up(Path(sys.executable).name, "-c", script, ports=ports)
    status, children = system.wait()
    assert status == 7
    # Standard output has nothing but the output of the command, whose programs are those of this installation.
    assert system.said == f"127.0.0.1:{port} http://127.0.0.1:{web}/v1 {sys.executable}\n"
    assert gone(children)
    # The next start finds the data, such as the keys of the store.
    keys = json.loads((system.data / "keys.json").read_text())
    again = up("sh", "-c", "kill -9 $$")
    assert again.process.wait(LIMIT) == 128 + 9
    assert json.loads((system.data / "keys.json").read_text()) == keys
    assert (system.data / "logs" / "gateway.log.before").exists()


def test_signal_reaches_the_command(up: Callable[..., Up], tmp_path: Path) -> None:
    script = "trap 'exit 5' TERM; touch begun; while :; do sleep 0.1; done"
    system = up("sh", "-c", f"cd {tmp_path}; {script}")
    wait_until(lambda: (tmp_path / "begun").exists(), problem="the command does not begin")
    assert system.end(signal.SIGTERM) == 5


def test_service_that_cannot_start_ends_it_all(up: Callable[..., Up], tmp_path: Path) -> None:
    (tmp_path / "unusable-ranker").touch()
    system = up()
    status, children = system.wait()
    assert status == 1
    assert (
        "smalti up: ranker cannot start (exit code 2): smalti ranker: SMALTI_MODEL: it is invalid\n"
        in system.said
    )
    assert len(children) >= 7
    assert gone(children)


def test_second_ctrl_c_does_not_wait(up: Callable[..., Up], tmp_path: Path) -> None:
    (tmp_path / "stubborn-gateway").touch()
    system = up().ready()
    children = system.children()
    system.process.send_signal(signal.SIGINT)
    wait_until(lambda: any(event.startswith("gateway ends") for event in system.events), problem="no end")
    assert system.process.poll() is None
    assert system.end() == 0
    assert gone(children)
    # The broker was not killed before the services that use it.
    assert "gateway has ended" not in system.events


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("door=1", "'door' must be one of gateway, "),
        ("gateway", "must be a number from 1 to 65535, or free"),
        ("gateway=0", "must be a number from 1 to 65535, or free"),
        ("gateway=70000", "must be a number from 1 to 65535, or free"),
        ("gateway=6380", "gateway=6380: another server has this port"),
    ],
)
def test_invalid_ports_are_refused(text: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["up", "--ports", text]) == 2
    error = capsys.readouterr().err
    assert error.startswith("smalti: ports: ")
    assert problem in error
    assert error.count("\n") == 1


def test_ports_are_the_default_ones_except_named_ones() -> None:
    assert read_ports(None) == DEFAULT_PORTS
    chosen = read_ports("gateway=6000,s3=free")
    assert chosen["gateway"] == 6000
    assert is_free(chosen["s3"])
    assert {name: port for name, port in chosen.items() if name not in ("gateway", "s3")} == {
        name: port for name, port in DEFAULT_PORTS.items() if name not in ("gateway", "s3")
    }
    assert not set(read_ports("free").values()) & set(DEFAULT_PORTS.values())


def test_more_workers_have_ports_of_their_own() -> None:
    ports = read_ports("generator-2=6000", ["encoder", "encoder-2", "generator", "generator-2"])
    assert {name: ports[name] for name in ("encoder", "encoder-2", "encoder-2-metrics", "generator-2")} == {
        "encoder": 50051,
        "encoder-2": 50060,
        "encoder-2-metrics": 9160,
        "generator-2": 6000,
    }
    with pytest.raises(InvalidInputError, match="'generator-2' must be one of"):
        read_ports("generator-2=6000")


def test_holder_of_a_free_port_is_unknown() -> None:
    assert holder(free_port()) == "an invisible process, perhaps of another user"


def test_wrong_model_or_program_is_one_line_at_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for arguments, said in (
        (["--model", "no-such-model"], "there is no model no-such-model"),
        (["--model", "pictograms", "--model", "pictograms"], "are the same model; give it once"),
        (["--", "no-such-program"], "COMMAND: no-such-program: no such program"),
    ):
        assert run(["up", "--data", str(tmp_path / "data"), *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_several_models_need_the_newest_messages(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny: ModelFolder,
    worded: ModelFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SMALTI_MESSAGES_WRITE", "2")
    models = [option for model in (tiny, worded) for option in ("--model", str(model.path))]
    # Ports that are wrong too, so that nothing starts whatever is checked.
    assert run(["up", "--data", str(tmp_path / "data"), "--ports", "x", *models]) == 2
    assert "SMALTI_MESSAGES_WRITE: must be 3 for several models; unset it" in capsys.readouterr().err
    assert run(["up", "--data", str(tmp_path / "data"), "--ports", "x", *models[:2]]) == 2
    assert "ports: " in capsys.readouterr().err


@pytest.mark.parametrize("width", [40, 80, 300])
def test_no_address_is_cut(tmp_path: Path, tiny: ModelFolder, worded: ModelFolder, width: int) -> None:
    workers = plan_workers([tiny, worded])
    with owned(tmp_path / "data"):
        ports = read_ports("free", [worker.name for worker in workers])
        system = System(tmp_path / "data", ports, workers)
    output = io.StringIO()
    show(system, 1.0, Console(file=output, width=width, highlight=False))
    lines = output.getvalue().splitlines()
    assert lines[0] == f"Open http://127.0.0.1:{ports[WEB]}"
    rows = {line.split()[0]: line.split() for line in lines if "/metrics" in line}
    for name in ("gateway", *(worker.name for worker in workers)):
        address, metrics = f"127.0.0.1:{ports[name]}", f"http://127.0.0.1:{ports[f'{name}-metrics']}/metrics"
        assert rows[name][1:3] == [address, metrics]
    assert all(len(line) <= 80 for line in lines if "127.0.0.1:" in line and "smalti generate" not in line)
    served = ", ".join(worker.name for worker in workers if worded in worker.models)
    assert served.startswith("encoder-2, generator-2, ")
    assert f"{worded.name}: {served}" in lines


def test_ports_error_is_an_input_error() -> None:
    with pytest.raises(InvalidInputError, match=r"^ports: "):
        read_ports("x")
