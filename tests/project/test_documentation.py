"""The README is true: each of its commands is run here or by CI."""

import re
import shlex
from pathlib import Path

import pytest

from harness.paths import ROOT
from smalti.cli import run

CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def commands(path: Path) -> list[list[str]]:
    """Returns the commands of a file's shell blocks, without their comments."""
    blocks = re.findall(r"```sh\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_make_targets_of_the_readme_are_run_by_ci() -> None:
    in_ci = {
        words[0]: words[1:]
        for words in (shlex.split(line, comments=True) for line in CI.splitlines())
        if words
    }
    targets = {target for words in commands(ROOT / "README.md") if words[0] == "make" for target in words[1:]}
    assert targets
    assert targets <= set(in_ci["make"])


def test_smalti_commands_of_the_readme_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    others = [words for words in commands(ROOT / "README.md") if words[0] != "make"]
    assert others
    for words in others:
        assert words[0] == ".venv/bin/smalti"
        assert run(words[1:]) == 0
    assert "9 of 16 drawn" in capsys.readouterr().out
    assert len(list(tmp_path.glob("pictures/*.png"))) == 10
