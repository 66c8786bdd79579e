"""200 prompts of the shipped model: killed twice on the way, and through the whole system, with the same files."""

import signal
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.cli.batches.conftest import compared, files_of
from tests.cli.batches.processes import COMMAND, end_when, ends, parts

pytestmark = [pytest.mark.slow, pytest.mark.process, pytest.mark.server, pytest.mark.timeout(1800)]

COLOURS = ("red", "green", "blue", "yellow", "white", "black", "orange", "purple", "brown", "pink")
OPTIONS = ("--n", "1", "--candidates", "2", "--shard", "25")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shipped") / "prompts.txt"
    path.write_text("".join(f"a {colour} cat\na {colour} house\n" for colour in COLOURS * 10))
    return path


@pytest.fixture(scope="module")
def whole(source: Path) -> Path:
    """The output of an undisturbed run in one process."""
    out = source.with_name("whole")
    status, said = ends([*COMMAND, "batch", "run", str(source), "--out", str(out), *OPTIONS])
    assert (status, said.partition(",")[0]) == (0, "200 of 200 prompts drawn"), said
    return out


def test_run_that_is_killed_twice_ends_with_the_same_files(source: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*COMMAND, "batch", "run", str(source), "--out", str(out), *OPTIONS]
    assert end_when(command, signal.SIGKILL, lambda: parts(out) >= 1)[0] == -signal.SIGKILL
    before = parts(out)
    assert end_when(command, signal.SIGKILL, lambda: parts(out) > before + 1)[0] == -signal.SIGKILL
    status, said = ends(command)
    assert (status, said.partition(",")[0]) == (0, "200 of 200 prompts drawn"), said
    assert files_of(out) == files_of(whole)


@pytest.fixture
def soon_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed worker is noticed after seconds, not after two minutes."""
    monkeypatch.setenv("SMALTI_GATEWAY_LEASE", "15")


def through_the_system(source: Path, data: Path, *command: str) -> str:
    """Draws a batch through `smalti up` while its generator is killed twice; returns what was said."""
    up = [*COMMAND, "up", "--ports", "free", "--data", str(data), "--"]
    status, said = ends([*up, sys.executable, "-m", "tests.cli.batches.harmed", str(source), *command])
    assert (status, said.count("killed ")) == (0, 2), said
    return said


@pytest.mark.usefixtures("soon_noticed")
def test_files_of_smalti_up_are_the_same(source: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    through_the_system(
        source, tmp_path / "data", *COMMAND, "batch", "run", str(source), "--out", str(out), *OPTIONS
    )
    assert compared(out) == compared(whole)


@pytest.mark.usefixtures("soon_noticed")
def test_pictures_of_the_client_of_openai_are_the_same(source: Path, whole: Path, tmp_path: Path) -> None:
    said = through_the_system(source, tmp_path / "data")
    drawn = [line.partition(" ")[2] for line in said.splitlines() if line.startswith("picture ")]
    [manifest] = (whole / "manifest").iterdir()
    rows = pq.read_table(manifest).to_pylist()
    assert drawn == [row["pictures"][0]["sha256"] for row in rows]
    assert len(drawn) == 200
