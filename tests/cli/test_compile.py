"""`smalti compile`: its programs are loaded by services, which compile nothing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.tpu.__main__ import find_libtpu
from harness.paths import ROOT
from harness.servers import ValkeyServer
from harness.service_process import ServiceProcess
from smalti.cli import run
from smalti.registry.folder import ModelFolder

LIMIT = 300.0


def run_apart(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs the command in a process of its own, since it decides which devices JAX has."""
    return subprocess.run(
        [sys.executable, "-m", "smalti", "compile", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )


def compiled(tiny: ModelFolder, folder: Path, *arguments: object) -> tuple[int, dict[str, str]]:
    """Compiles the tiny model for this machine; returns the number of programs, and the settings that were printed."""
    done = run_apart("--for", "cpu", "--model", tiny.path, "--slots", 4, "--out", folder, *arguments)
    assert done.returncode == 0, done.stderr
    said = dict(line.split("=") for line in done.stdout.splitlines() if line.startswith("SMALTI_"))
    assert said["SMALTI_COMPILED"] == str(folder)
    (count,) = (
        line.split()[0] for line in done.stdout.splitlines() if f"programs of {tiny.name} for cpu" in line
    )
    return int(count), said


def service(
    name: str, valkey: ValkeyServer, tiny: ModelFolder, store: Path, **settings: str
) -> Iterator[str]:
    """Starts a service, ends it, and yields its log."""
    process = ServiceProcess(
        name,
        broker=valkey.url,
        store=store.as_uri(),
        model=tiny.path,
        environment={"SMALTI_COMPILATION_CACHE": "", **settings},
    )
    try:
        process.start()
        assert process.end() == 0
        yield process.log.read_text()
    finally:
        process.close()


@pytest.mark.process
def test_service_loads_its_programs_and_compiles_nothing(
    valkey: ValkeyServer, tiny: ModelFolder, tmp_path: Path
) -> None:
    folder = tmp_path / "compiled"
    assert compiled(tiny, folder, "--stage", "decoder")[0] == 2
    (log,) = service("decoder", valkey, tiny, tmp_path, SMALTI_COMPILED=str(folder))
    assert "compiled the program" not in log
    assert log.count(f"from {folder} in") == 2


@pytest.mark.slow
@pytest.mark.process
def test_generator_loads_what_fits(valkey: ValkeyServer, tiny: ModelFolder, tmp_path: Path) -> None:
    folder = tmp_path / "compiled"
    count, said = compiled(tiny, folder)
    assert count == 11
    settings = {"SMALTI_SERVICE_SLOTS": "4", "SMALTI_COMPILED": str(folder)}
    (log,) = service("generator", valkey, tiny, tmp_path, **settings)
    assert "compiled the program" not in log
    assert "is not loaded from" not in log
    assert log.count(f"from {folder} in") == 9
    # A folder that others can write to is trusted by its SHA-256; with other slots, only some programs fit.
    open_to_all = tmp_path / "open"
    shutil.copytree(folder, open_to_all)
    open_to_all.chmod(0o777)
    settings = {
        "SMALTI_SERVICE_SLOTS": "2",
        "SMALTI_COMPILED": str(open_to_all),
        "SMALTI_COMPILED_SHA256": said["SMALTI_COMPILED_SHA256"],
    }
    (log,) = service("generator", valkey, tiny, tmp_path, **settings)
    assert f"read the program engines.generator.programs.prefill from {open_to_all}" in log
    assert "engines.generator.state.empty_state is not loaded from" in log
    assert "static.slots is 4 there and 2 here" in log


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--for", "tpu"), "for: 'tpu' must be cpu, gpu, or a kind of TPU and its chips, such as v5e:2x2"),
        (("--for", "cpu", "--stage", "ranker"), "stage: 'ranker' must be one of encoder, generator, decoder"),
        (("--for", "cpu", "--mesh", "2x2"), "mesh: 2x2 needs 4 devices, but there are 1; use a smaller mesh"),
        (("--for", "cpu", "--model", "none"), "there is no model none."),
    ],
)
def test_wrong_argument_leaves_nothing(
    arguments: tuple[str, ...], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compile", *arguments, "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = [each for each in err.splitlines() if each.strip()]
    assert problem in line
    assert list(tmp_path.iterdir()) == []


def test_folder_of_others_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("")
    assert run(["compile", "--for", "cpu", "--out", str(tmp_path), "--overwrite"]) == 2
    assert "was not written by Smalti" in capsys.readouterr().err
    assert (tmp_path / "mine").exists()


@pytest.mark.slow
@pytest.mark.process
def test_programs_for_a_chip_that_is_not_there(tiny: ModelFolder, tmp_path: Path) -> None:
    asked = ("--for", "v5e:2x2", "--model", tiny.path, "--slots", 4, "--out", tmp_path / "v5e")
    if find_spec("libtpu") is None:
        done = run_apart(*asked)
        assert done.returncode == 2
        assert "for: v5e:2x2 needs Google's compiler: pip install 'smalti[tpu]'" in done.stderr
    done = run_apart(*asked, PYTHONPATH=os.pathsep.join((str(ROOT), str(find_libtpu()))))
    assert done.returncode == 0, done.stderr
    assert f"11 programs of {tiny.name} for v5e:2x2" in done.stdout
    script = "from smalti.compilation import use_compilation_cache; use_compilation_cache()"
    here = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT), "SMALTI_COMPILED": str(tmp_path / "v5e")},
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT,
    )
    assert "they were made for another machine: platform is tpu there and cpu here" in here.stderr
