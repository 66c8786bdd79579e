"""`smalti doctor` on machines that lack something: each thing is one line with its remedy."""

import json
import os
import pwd
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.servers import ValkeyServer
from smalti.cli import run
from smalti.doctor import machine
from smalti.doctor.finding import Finding, State

pytestmark = pytest.mark.process

Doctor = Callable[..., tuple[int, dict[str, list[dict[str, str]]]]]


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Doctor:
    """Runs the command on a machine where all is well but what a test changes; returns its status and findings."""
    for name in [name for name in os.environ if name.startswith("SMALTI_") or name == "JAX_PLATFORMS"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*options: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
        status = run(["doctor", "--json", *options])
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert report["works"] is (status == 0)
        found: dict[str, list[dict[str, str]]] = {}
        for each in report["findings"]:
            assert "\n" not in each["text"]
            found.setdefault(each["subject"], []).append(each)
        return status, found

    return call


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the questions that take seconds."""
    monkeypatch.setattr(machine, "_device", lambda: Finding(subject="device", state=State.NOTE, text=""))


def states(found: dict[str, list[dict[str, str]]]) -> dict[str, str]:
    return {subject: each[0]["state"] for subject, each in found.items()}


def test_machine_on_which_all_is_well(doctor: Doctor, tmp_path: Path) -> None:
    status, found = doctor()
    assert status == 0
    assert states(found) == dict.fromkeys(
        ("home", "data folder", "temporary files", "model", "device", "compiled programs"), "good"
    )
    assert "pictograms, sha256:" in found["model"][0]["text"]
    assert found["compiled programs"][0]["text"] == str(tmp_path / "cache/smalti/compiled")


@pytest.mark.usefixtures("quick")
def test_machine_without_a_home(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda number: {}[number])
    assert doctor()[0] == 0  # The other variables say where everything goes.
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME")
    status, found = doctor()
    assert status == 2
    assert found["home"][0]["text"].startswith(
        "HOME: is not set, and this user has no home; set HOME, or XDG_"
    )
    assert states(found)["data folder"] == "fails"
    monkeypatch.setenv("HOME", "/nonexistent")
    assert doctor()[1]["home"][0]["text"] == "HOME: /nonexistent is not there; set HOME to a folder that is"


def test_machine_without_a_cache_that_can_be_written(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for cache, problem in (("file/below", "File exists"), ("open", "others can write to")):
        (tmp_path / "open").mkdir(exist_ok=True)
        (tmp_path / "open").chmod(0o777)
        monkeypatch.setenv("SMALTI_COMPILATION_CACHE", str(tmp_path / cache))
        status, found = doctor()
        assert status == 0
        (only,) = found["compiled programs"]
        assert only["state"] == "note"
        assert only["text"].startswith("SMALTI_COMPILATION_CACHE is not used, so every start compiles: ")
        assert problem in only["text"]


def test_machine_with_a_foreign_broker_variable() -> None:
    environment = {**os.environ, "CELERY_BROKER_URL": "redis://:secret@elsewhere", "JAX_PLATFORMS": "rocm"}
    environment["SMALTI_BROKR_URL"] = "redis://127.0.0.1:1/0"
    done = subprocess.run(
        [sys.executable, "-m", "smalti", "doctor"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    lines = done.stdout.splitlines()
    assert any(line.startswith("note   environment: CELERY_BROKER_URL is ignored (Celery)") for line in lines)
    assert "secret" not in done.stdout
    assert (
        "note   settings: SMALTI_BROKR_URL is no setting of Smalti; did you mean SMALTI_BROKER_URL?" in lines
    )
    # The device that is not there is in the same report.
    assert any(
        line.startswith("fails  device: JAX_PLATFORMS: there is no device of 'rocm' here") for line in lines
    )
    assert lines[-1].startswith("1 of ")
    assert (done.returncode, done.stderr) == (2, "")


@pytest.mark.usefixtures("quick")
def test_machine_without_room(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    status, found = doctor()
    assert status == 2
    assert found["data folder"][0]["text"] == f"XDG_DATA_HOME: {tmp_path / 'file'} is a file; name a folder"
    assert found["temporary files"][0]["text"].startswith(
        "TMPDIR: no temporary file can be written (No such file"
    )


@pytest.mark.usefixtures("quick")
def test_settings_that_are_invalid(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_RPC_PORT", "many")
    monkeypatch.setenv("SMALTI_GATEWAY_CHUNK", "0")
    monkeypatch.setenv("SMALTI_MODEL", "nonesuch")
    status, found = doctor()
    assert status == 2
    assert [each["text"].partition(":")[0] for each in found["settings"]] == [
        "SMALTI_RPC_PORT",
        "SMALTI_GATEWAY_CHUNK",
    ]
    assert states(found)["model"] == "fails"


@pytest.mark.server
@pytest.mark.usefixtures("quick")
def test_servers_that_settings_name(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, valkey: ValkeyServer
) -> None:
    monkeypatch.setenv("SMALTI_BROKER_URL", valkey.url)
    monkeypatch.setenv("SMALTI_STORE_URL", (tmp_path / "store").as_uri())
    monkeypatch.setenv("SMALTI_GATEWAY_DATABASE", f"sqlite:///{tmp_path}/jobs.sqlite3")
    status, found = doctor()
    assert status == 0
    assert [states(found)[name] for name in ("broker", "object store", "database")] == ["good"] * 3
    assert not (tmp_path / "jobs.sqlite3").exists()
    with ValkeyServer(tmp_path / "locked", password="0123456789abcdef") as locked:
        monkeypatch.setenv("SMALTI_BROKER_URL", f"redis://:wrong@127.0.0.1:{locked.port}/0")
        (refused,) = doctor()[1]["broker"]
        assert refused["state"] == "fails"
        assert "wrong" not in refused["text"]
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("SMALTI_BROKER_URL", f"redis://127.0.0.1:{port}/0")
    monkeypatch.setenv("SMALTI_SERVER", f"127.0.0.1:{port}")
    monkeypatch.setenv("SMALTI_GATEWAY_DATABASE", f"postgresql://user@127.0.0.1:{port}/jobs")
    monkeypatch.setenv("SMALTI_STORE_URL", f"s3+http://key:secret@127.0.0.1:{port}/pictures")
    status, found = doctor()
    assert status == 0  # What does not answer yet may come.
    assert [states(found)[name] for name in ("broker", "object store", "database", "gateway")] == [
        "waits"
    ] * 4
    monkeypatch.setenv("SMALTI_BROKER_URL", "redis://127.0.0.1/jobs")
    status, found = doctor()
    assert status == 2
    assert found["broker"][0]["text"].startswith("SMALTI_BROKER_URL: must end with the number of a database")
