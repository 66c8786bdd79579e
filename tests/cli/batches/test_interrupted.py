"""Runs of `smalti batch` that are killed go on, and end with the files of an undisturbed run."""

import json
import signal
import sys
from pathlib import Path

import pytest
from pyarrow import parquet

from smalti.cli import run
from smalti.registry.folder import ModelFolder
from tests.cli.batches.conftest import files_of
from tests.cli.batches.processes import COMMAND, end_when, ends, parts

pytestmark = [pytest.mark.slow, pytest.mark.process]

# A prompt over which the process is lost, as by a fault of a library or for want of memory.
BOMB = """
import os, signal, sys
from smalti.cli import run
from smalti.engines.ranker import RankerEngine

look = RankerEngine.look

def explode(self, prompt, images):
    if prompt == "a bomb":
        os.kill(os.getpid(), signal.SIGKILL)
    return look(self, prompt, images)

RankerEngine.look = explode
sys.exit(run(sys.argv[1:]))
"""


def options(model: Path, source: Path, out: Path, *more: str) -> list[str]:
    given = ["batch", "run", str(source), "--out", str(out), "--model", str(model)]
    return [*given, *more]


def test_run_that_is_killed_three_times_ends_with_the_same_files(tiny: ModelFolder, tmp_path: Path) -> None:
    source = tmp_path / "prompts.txt"
    source.write_text("".join(f"a fox number {number}\n" for number in range(60)))
    more = ("--n", "2", "--candidates", "4", "--shard", "3")
    assert run(options(tiny.path, source, tmp_path / "whole", *more)) == 0
    out = tmp_path / "out"
    command = [*COMMAND, *options(tiny.path, source, out, *more)]
    # While shards are drawn, while they are drawn prompt by prompt, and by Ctrl-C.
    assert end_when(command, signal.SIGKILL, lambda: parts(out) >= 3)[0] == -signal.SIGKILL
    alone = len(list(out.glob("_work/begun/*.json")))
    assert alone
    before = parts(out)
    assert end_when(command, signal.SIGKILL, lambda: parts(out) > before)[0] == -signal.SIGKILL
    before = parts(out)
    status, said = end_when(command, signal.SIGINT, lambda: parts(out) > before)
    assert (status, said) == (130, "smalti: interrupted; every file that was written is complete\n")
    assert parts(out) < 20
    status, said = ends(command)
    assert status == 0, said
    assert files_of(out) == files_of(tmp_path / "whole")


def test_prompt_that_ends_the_process_twice_in_a_row_is_told_as_failed(
    tiny: ModelFolder, tmp_path: Path
) -> None:
    source = tmp_path / "prompts.txt"
    source.write_text("a fox\na cat\na bomb\na house\na tree\n")
    more = ("--n", "1", "--candidates", "2", "--shard", "4")
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(options(tiny.path, source, whole, *more)) == 0
    (tmp_path / "bomb.py").write_text(BOMB)
    command = [sys.executable, str(tmp_path / "bomb.py"), *options(tiny.path, source, out, *more)]
    assert ends(command)[0] == -signal.SIGKILL
    # Now drawn prompt by prompt: what comes before it is drawn again, and then it is known.
    assert ends(command)[0] == -signal.SIGKILL
    assert json.loads((out / "_work/begun/00000.json").read_text())["row"] == 2
    assert ends(command)[0] == -signal.SIGKILL
    status, said = ends(command)
    assert (status, said.partition(",")[0]) == (0, "4 of 5 prompts drawn"), said
    rows = parquet.read_table(out / "manifest").to_pylist()
    assert [row["state"] for row in rows] == ["drawn", "drawn", "failed", "drawn", "drawn"]
    assert "ended the process twice in a row" in rows[2]["problem"]
    # All others are what they are without it.
    others = parquet.read_table(whole / "manifest").to_pylist()
    assert [row for row in rows if row["row"] != 2] == [row for row in others if row["row"] != 2]
    assert not (out / "_work").exists()
