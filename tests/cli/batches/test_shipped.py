"""200 prompts of the shipped model: killed twice on the way, and through the whole system, with the same files."""

import signal
from pathlib import Path

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


def test_files_of_smalti_up_are_the_same(source: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    up = [*COMMAND, "up", "--ports", "free", "--data", str(tmp_path / "data"), "--"]
    status, said = ends([*up, "smalti", "batch", "run", str(source), "--out", str(out), *OPTIONS])
    assert status == 0, said
    assert compared(out) == compared(whole)
