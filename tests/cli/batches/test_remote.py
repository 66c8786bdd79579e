"""`smalti batch` at a gateway: sending, looking, and fetching, over broken connections and interruptions."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.batch_service import FILES
from harness.image_service import ServedGateway, served_gateway
from smalti.v1 import batch_pb2
from tests.cli.batches.conftest import Batch, files_of


@pytest.fixture(scope="module")
def server() -> Iterator[ServedGateway]:
    with served_gateway() as served:
        yield served


@pytest.fixture
def served(server: ServedGateway, monkeypatch: pytest.MonkeyPatch) -> ServedGateway:
    """A gateway without batches, which the environment names."""
    server.batches.__init__()  # type: ignore[misc]
    monkeypatch.setenv("SMALTI_SERVER", server.address)
    return server


def test_run_sends_waits_and_fetches(
    batch: Batch, served: ServedGateway, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--n", "2", "--temperature", "0.5", "--format", "webp", "--column", "prompt=caption")
    status, output, error = batch("run", prompts, "--out", out, *options, "--upscale", "2", "--refine")
    assert status == 0
    assert error == "batch batch-0\n"
    assert "state:      succeeded" in output
    assert files_of(out) == FILES
    (request,) = served.batches.calls["CreateBatch"]
    assert request.input.format == batch_pb2.BATCH_FORMAT_TEXT
    assert dict(request.input.columns) == {"prompt": "caption"}
    assert (request.parameters.n, request.parameters.sampling.temperature) == (2, 0.5)
    assert (request.picture_format, request.shard_prompts) == (batch_pb2.PICTURE_FORMAT_WEBP, 256)
    assert request.parameters.HasField("refine")
    assert served.batches.files[request.input.file_id][1] == prompts.read_bytes()


def test_run_that_was_interrupted_goes_on_with_its_batch(
    batch: Batch, served: ServedGateway, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    served.batches.damaged = 1
    status, _, error = batch("run", prompts, "--out", out)
    assert status == 2
    assert "arrives damaged" in error
    # Only what is whole is there, and not the mark that all is.
    assert "_SUCCESS" not in files_of(out)
    status, _, error = batch("run", prompts, "--out", out, "--seed", "1")
    assert f"{out} has batch batch-0 of another input or other options" in error
    assert batch("run", prompts, "--out", out)[0] == 0
    assert files_of(out) == FILES
    assert len(served.batches.calls["CreateBatch"]) == 1


def test_place_with_another_run_is_refused(
    batch: Batch,
    served: ServedGateway,
    prompts: Path,
    drawn: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.delenv("SMALTI_SERVER")
        assert batch("run", prompts, "--out", out, *drawn)[0] == 0
    own = drawn[2:]
    assert batch("run", prompts, "--out", out, *own)[:2] == (0, f"{out} is complete already\n")
    for more, difference in (
        (("--seed", "1"), "its seed is 0, not 1"),
        (("--n", "1"), "its n is 2, not 1"),
        (("--temperature", "0.5"), "its temperature is"),
        (("--format", "webp"), "its picture format is png, not webp"),
        (("--model", "other"), "its model is"),
        (("--refine",), "its refine is false, not true"),
    ):
        status, _, error = batch("run", prompts, "--out", out, *own, *more)
        assert (status, f"{out} has another run: {difference}" in error) == (2, True), error
    (out / "00001.tar").unlink()
    assert "lacks 00001.tar" in batch("run", prompts, "--out", out, *own)[2]
    assert not served.batches.calls["CreateBatch"]


def test_gateway_that_cannot_be_reached_leaves_nothing(batch: Batch, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert batch("run", prompts, "--out", out, "--server", "127.0.0.1:1")[0] == 2
    assert not out.exists()


def test_batch_that_was_deleted_is_told_with_the_remedy(
    batch: Batch, served: ServedGateway, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    served.batches.damaged = 1
    batch("run", prompts, "--out", out)
    batch("delete", "batch-0")
    status, _, error = batch("run", prompts, "--out", out)
    assert status == 2
    assert "there is no batch batch-0, or it has been deleted; remove its _work/batch.json to begin" in error


def test_place_with_a_run_of_the_other_kind_is_refused(
    batch: Batch,
    served: ServedGateway,
    prompts: Path,
    drawn: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here/_work").mkdir(parents=True)
    (tmp_path / "here/_work/run.json").write_text("{}")
    assert "has a run in one process" in batch("run", prompts, "--out", tmp_path / "here")[2]
    (tmp_path / "there/_work").mkdir(parents=True)
    (tmp_path / "there/_work/batch.json").write_text("{}")
    monkeypatch.delenv("SMALTI_SERVER")
    assert "has a run at a gateway" in batch("run", prompts, "--out", tmp_path / "there", *drawn)[2]


def test_batch_that_fails_ends_the_run_with_its_reason(
    batch: Batch, served: ServedGateway, prompts: Path, tmp_path: Path
) -> None:
    batch_id = batch("submit", prompts, "--name", "fail")[1].strip()
    status, output, error = batch("watch", batch_id)
    assert (status, error) == (2, "smalti: it cannot be drawn\n")
    assert "state:      failed" in output


def test_submit_prints_the_id_alone(batch: Batch, served: ServedGateway, prompts: Path) -> None:
    status, output, error = batch("submit", prompts, "--name", "animals", "--rank", "7", "--slots", "3")
    assert (status, output, error) == (0, "batch-0\n", "")
    (request,) = served.batches.calls["CreateBatch"]
    assert (request.name, request.rank, request.slots) == ("animals", 7, 3)
    assert json.loads(batch("submit", prompts, "--json")[1])["id"] == "batch-1"


def test_batches_are_listed_looked_at_and_changed(batch: Batch, served: ServedGateway, prompts: Path) -> None:
    assert batch("list")[1] == "There are no batches.\n"
    for name in ("first", "second", "third"):
        batch("submit", prompts, "--name", name)
    lines = batch("list", "--limit", "2")[1].splitlines()
    assert [line.split()[0] for line in lines] == ["id", "batch-2", "batch-1"]
    assert "3 of 3" in lines[1]
    assert [each["id"] for each in json.loads(batch("list", "--json")[1])] == [
        "batch-2", "batch-1", "batch-0",
    ]  # fmt: skip
    assert json.loads(batch("pause", "batch-0", "--json")[1])["state"] == "paused"
    assert "state:      running" in batch("resume", "batch-0")[1]
    assert json.loads(batch("cancel", "batch-0", "--json")[1])["state"] == "cancelled"
    assert json.loads(batch("status", "batch-0", "--json")[1])["state"] == "cancelled"
    status, _, error = batch("watch", "batch-0")
    assert (status, error) == (2, "smalti: batch batch-0 was cancelled\n")
    assert batch("delete", "batch-0")[1] == "batch batch-0 is deleted\n"
    assert "there is no batch batch-0" in batch("status", "batch-0")[2]


def test_results_fetch_what_is_missing(
    batch: Batch, served: ServedGateway, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    batch("submit", prompts)
    batch("submit", prompts)
    served.batches.breaks["DownloadBatchFile"] = [1, 2]
    assert batch("results", "batch-0", "--out", out)[:2] == (0, f"4 files: {out}\n")
    assert files_of(out) == FILES
    calls = len(served.batches.calls["DownloadBatchFile"])
    (out / "summary.json").unlink()
    assert batch("results", "batch-0", "--out", out)[0] == 0
    assert len(served.batches.calls["DownloadBatchFile"]) == calls + 1
    (out / "summary.json").write_text("{}")
    status, _, error = batch("results", "batch-0", "--out", out)
    assert (status, error) == (
        2, f"smalti: out: {out} has summary.json, which is not of batch batch-0; give another place\n",
    )  # fmt: skip


def test_dry_run_only_checks(batch: Batch, served: ServedGateway, prompts: Path) -> None:
    output = batch("run", prompts, "--dry-run")[1]
    assert "candidates: 12" in output
    assert [request.validate_only for request in served.batches.calls["CreateBatch"]] == [True]


def test_input_that_cannot_be_read_is_told_before_the_gateway_is_asked(
    batch: Batch, served: ServedGateway, tmp_path: Path
) -> None:
    status, _, error = batch("submit", tmp_path / "prompts.txt")
    assert status == 2
    assert error == f"smalti: input: {tmp_path}/prompts.txt: cannot be read (No such file or directory)\n"
    assert not served.batches.calls["CreateBatch"]
