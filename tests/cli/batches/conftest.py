"""What the tests of `smalti batch` share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smalti.cli import run
from smalti.registry.folder import ModelFolder

# Arguments to (status, standard output, standard error).
Batch = Callable[..., tuple[int, str, str]]

PROMPTS = ["a red fox", "a blue cat", "a fox", "a fox", "a small house"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """An input of five prompts, two of which are equal."""
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return path


@pytest.fixture
def batch(capsys: pytest.CaptureFixture[str]) -> Batch:
    """Runs `smalti batch`; returns (status, standard output, standard error)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        status = run(["batch", *map(str, arguments)])
        output = capsys.readouterr()
        return status, output.out, output.err

    return call


@pytest.fixture
def drawn(tiny: ModelFolder) -> tuple[str, ...]:
    """Options that draw little, with the tiny model, in shards of two prompts."""
    return ("--model", str(tiny.path), "--n", "2", "--candidates", "3", "--shard", "2")


def files_of(folder: Path) -> dict[str, bytes]:
    """Returns the content of all files of a folder, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def compared(folder: Path) -> dict[str, Any]:
    """Returns the files of an output, without the limit of a gateway, which decides nothing here."""
    files: dict[str, Any] = files_of(folder)
    summary = json.loads(files["summary.json"])
    del summary["parameters"]["max_candidates"]
    return {**files, "summary.json": summary}
