"""The measurements for a GPU or TPU run with tiny shapes on a CPU."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.accelerator.__main__ import NAMES, measure_apart
from benchmarks.accelerator.results import Check, Limit, Timing, parse, tables
from benchmarks.accelerator.rows import ROWS
from harness.paths import ROOT

TOKEN = Timing(
    work="mini, 16 slots, a token", peer=False, dtype="bfloat16", milliseconds=2.0, lowest=1.5, highest=2.5,
    pictures_a_second=31.25, operations=1e9, size=2e9, memory=2**30, peak=2**31, start=3.0,
)  # fmt: skip
LIMIT = Limit(limit="bfloat16", operations=1e15, bandwidth=2e12, device="1 x chip")


def test_every_row_is_listed() -> None:
    assert tuple(ROWS) == NAMES


@pytest.mark.process
@pytest.mark.parametrize(
    "name",
    [
        "mini-16",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("golden", "decode", "torch-mega-64")),
    ],
)
def test_row_succeeds(name: str) -> None:
    # In a process of its own also because a program that is lowered ahead of time has trees without arrays, which the
    # checks of shapes in tests refuse.
    found, error = measure_apart(name, small=True, seconds=500)
    assert not error
    results = [parse(each) for each in found]
    checks = [each for each in results if isinstance(each, Check)]
    assert all(each.passed is not False for each in checks), checks
    timings = [each for each in results if isinstance(each, Timing)]
    assert all(0 < each.lowest <= each.milliseconds <= each.highest for each in timings)
    kinds = {"mini-16": (1, 1), "golden": (0, 11), "decode": (3, 2), "torch-mega-64": (1, 0)}
    assert (len(timings), len(checks)) == kinds[name]


@pytest.mark.process
def test_limits_are_printed_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "results" / "accelerator.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.accelerator",
        "--small",
        "--only",
        "limits",
        "--row-seconds",
        "280",
        "--out",
        str(out),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "* limits, bfloat16: " in done.stdout
    kept = json.loads(out.read_text())
    assert [each["limit"] for each in kept["results"]] == ["bfloat16", "float32"]
    assert kept["errors"] == {}


@pytest.mark.process
def test_row_that_hangs_is_stopped_and_told_in_one_line() -> None:
    assert measure_apart("limits", small=True, seconds=0.2) == ([], "stopped after 0 s")


def test_table_shows_the_floor_the_share_and_torch() -> None:
    torch = [replace(TOKEN, peer=True, milliseconds=each) for each in (8.0, 4.0)]
    text = tables([LIMIT, TOKEN, *torch], {"mega-64": "out of memory"})
    assert (
        "| mini, 16 slots, a token, bfloat16 | 2 (1.5 to 2.5) | 31.2 | 1 | 0.50 | 8; 4 | 1.00; 2.00 | 3.0 |"
        in text
    )
    assert "* mega-64: out of memory" in text
    assert "| | |" not in text


def test_check_that_fails_is_told() -> None:
    assert "| logits | NO | far off |" in tables([Check(check="logits", passed=False, detail="far off")], {})
