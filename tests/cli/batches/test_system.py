"""`smalti batch` through the whole system: the files are those of a run in one process."""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.processes import LIMIT, started
from harness.waiting import wait_until
from smalti.client import Client
from smalti.client.batches import uploads
from smalti.registry.folder import ModelFolder
from tests.cli.batches.conftest import Batch, compared, files_of

pytestmark = [pytest.mark.slow, pytest.mark.server]

OPTIONS = ("--n", "2", "--candidates", "3", "--shard", "4", "--vary", "--seed", "5")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": f"a red cat {number}", "id": f"p{number}", "n": 1 + number % 2} for number in range(18)
    ]
    rows.insert(5, {"prompt": " ", "id": "blank", "n": 1})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_files_of_the_system_are_those_of_one_process(
    batch: Batch, system: str, worded: ModelFolder, source: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    options = (*OPTIONS, "--skip-invalid")
    assert batch("run", source, "--out", here, "--model", worded.path, *options)[0] == 0
    assert (
        "input: line 6, column 'prompt'"
        in batch("run", source, "--out", there, "--server", system, *OPTIONS)[2]
    )
    status, output, error = batch("run", source, "--out", there, "--server", system, *options)
    assert (status, "succeeded" in output) == (0, True), error
    assert compared(there) == compared(here)
    assert batch("run", source, "--out", there, "--server", system, *options)[1] == (
        f"{there} is complete already\n"
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_run_whose_client_is_ended_goes_on_and_is_fetched(
    batch: Batch, system: str, source: Path, tmp_path: Path, number: int, status: int
) -> None:
    out = tmp_path / "out"
    options = (*OPTIONS, "--skip-invalid", "--server", system)
    command = [sys.executable, "-m", "smalti", "batch", "run", str(source), "--out", str(out), *options]
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        record = out / "_work/batch.json"
        wait_until(lambda: record.exists() and json.loads(record.read_text())["batch"], LIMIT)
        process.send_signal(number)
        assert process.wait(LIMIT) == status
    batch_id = json.loads((out / "_work/batch.json").read_text())["batch"]
    status, _, error = batch(*command[4:])
    assert (status, error) == (0, f"batch {batch_id}\n")
    fetched = tmp_path / "fetched"
    assert batch("results", batch_id, "--server", system, "--out", fetched)[0] == 0
    assert files_of(fetched) == files_of(out)


def test_batch_is_paused_cancelled_and_deleted(batch: Batch, system: str, tmp_path: Path) -> None:
    source = tmp_path / "many.txt"
    source.write_text("".join(f"a blue house {number}\n" for number in range(400)))
    at = ("--server", system)
    batch_id = batch("submit", source, "--n", "1", "--shard", "4", *at)[1].strip()
    wait_until(lambda: status_of(batch, batch_id, at) == "running", LIMIT)
    assert json.loads(batch("pause", batch_id, *at, "--json")[1])["state"] == "paused"
    assert json.loads(batch("resume", batch_id, *at, "--json")[1])["state"] == "running"
    batch("cancel", batch_id, *at)
    wait_until(lambda: status_of(batch, batch_id, at) == "cancelled", LIMIT)
    assert batch("watch", batch_id, *at)[2] == f"smalti: batch {batch_id} was cancelled\n"
    assert batch("results", batch_id, "--out", tmp_path / "out", *at)[0] == 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["state"] == "cancelled"
    assert not (tmp_path / "out/_SUCCESS").exists()
    assert batch_id in batch("list", *at)[1]
    assert batch("delete", batch_id, *at)[0] == 0
    assert batch_id not in batch("list", *at)[1]


def test_large_file_goes_to_the_store_itself_and_comes_back(system: str) -> None:
    content = b"a red cat\n" * (uploads.MIN_DIRECT_BYTES // 10 + 1)
    with Client(system) as client:
        # Both ways give the same file.
        for name, size in (("large.txt", len(content)), ("small.txt", 1000)):
            file = client.files.upload(content[:size], name=name)
            assert (file.size_bytes, file.sha256) == (size, hashlib.sha256(content[:size]).hexdigest())
            assert b"".join(client.files.read(file)) == content[:size]
        both = client.files.compose([file.id], name="joined.txt")
        assert b"".join(client.files.read(both, offset=990)) == content[:10]
        assert [each.name for each in client.files.list(name="joined.txt")] == ["joined.txt"]


def status_of(batch: Batch, batch_id: str, at: tuple[str, ...]) -> str:
    return str(json.loads(batch("status", batch_id, *at, "--json")[1])["state"])
