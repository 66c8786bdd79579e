"""`smalti batch` reads and writes addresses of S3, with the files that it writes into a folder."""

import signal
from pathlib import Path

import pytest

from harness.servers import S3Server
from smalti.cli.batches.places import StoreRun, open_place
from smalti.errors import StoreUnavailableError
from tests.cli.batches.conftest import Batch, files_of
from tests.cli.batches.processes import COMMAND, end_when, ends


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SMALTI_STORE_URL", s3.url)
    return "s3://batches"


def objects(address: str) -> dict[str, bytes]:
    place = open_place(address)
    assert isinstance(place, StoreRun)
    return {name: place.store.get(place.prefix + name) for name in place.names()}


def test_objects_are_those_of_a_folder_and_a_run_that_failed_goes_on(
    batch: Batch,
    bucket: str,
    prompts: Path,
    drawn: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert batch(prompts, "--out", tmp_path / "whole", *drawn)[0] == 0
    place = open_place(f"{bucket}/in")
    assert isinstance(place, StoreRun)
    place.store.put("in/prompts.txt", prompts.read_bytes())
    out = f"{bucket}/run-7/"
    # The store is full when the second shard is written.
    put_file = StoreRun.put_file

    def full(self: StoreRun, name: str, path: Path, content_type: str) -> None:
        if name == "00001.tar":
            raise StoreUnavailableError("the store is full", transient=False)
        put_file(self, name, path, content_type)

    with monkeypatch.context() as patched:
        patched.setattr(StoreRun, "put_file", full)
        status, _, error = batch(f"{bucket}/in/prompts.txt", "--out", out, *drawn)
    assert (status, error) == (2, "smalti: the store is full\n")
    there = objects(out)
    assert "_work/parts/00000.jsonl" in there
    assert "summary.json" not in there
    status, _, error = batch(f"{bucket}/in/prompts.txt", "--out", out, *drawn, "--seed", "3")
    assert f"{out} has another run: its seed is 0, not 3" in error
    status, output, error = batch(f"{bucket}/in/prompts.txt", "--out", out, *drawn)
    assert (status, error) == (0, "")
    assert output.endswith(f": {out}\n")
    assert objects(out) == files_of(tmp_path / "whole")
    assert "is complete already" in batch(prompts, "--out", out, *drawn)[1]


def test_prefix_with_other_objects_is_refused(
    batch: Batch, bucket: str, prompts: Path, drawn: tuple[str, ...]
) -> None:
    place = open_place(f"{bucket}/other")
    assert isinstance(place, StoreRun)
    place.store.put("other/notes.txt", b"mine")
    assert "is not empty (it has notes.txt)" in batch(prompts, "--out", f"{bucket}/other", *drawn)[2]
    assert objects(f"{bucket}/other") == {"notes.txt": b"mine"}
    status, _, error = batch(f"{bucket}/nowhere.txt", "--out", f"{bucket}/new", *drawn)
    assert (status, error) == (2, "smalti: input: there is no object s3://batches/nowhere.txt\n")


@pytest.mark.slow
@pytest.mark.process
def test_run_that_is_killed_goes_on_at_once(
    batch: Batch, bucket: str, drawn: tuple[str, ...], tmp_path: Path
) -> None:
    """What it has left says which process of this machine it was, so nobody waits for it."""
    source, out = tmp_path / "prompts.txt", f"{bucket}/killed/"
    source.write_text("".join(f"a fox number {number}\n" for number in range(30)))
    assert batch(source, "--out", tmp_path / "whole", *drawn)[0] == 0
    place = open_place(out)
    command = [*COMMAND, "batch", "run", str(source), "--out", out, *drawn]
    status, _ = end_when(command, signal.SIGKILL, lambda: len(list(place.names("_work/parts/"))) >= 3)
    assert status == -signal.SIGKILL
    assert list(place.names("_work/leases/"))
    status, said = ends(command)
    assert status == 0, said
    assert objects(out) == files_of(tmp_path / "whole")
