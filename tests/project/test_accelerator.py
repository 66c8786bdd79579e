"""The measurements for a GPU or TPU run with tiny shapes on a CPU."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.accelerator.__main__ import choose, explain, measure_apart
from benchmarks.accelerator.listing import MISSING, NEEDED, ROWS, missing_packages
from benchmarks.accelerator.results import Check, Limit, Timing, parse, tables
from benchmarks.accelerator.rows import MEASURES
from harness.paths import ROOT

TOKEN = Timing(
    work="mini, 16 slots, a token", peer=False, dtype="bfloat16", milliseconds=2.0, lowest=1.5, highest=2.5,
    pictures_a_second=31.25, operations=1e9, size=2e9, memory=2**30, peak=2**31, start=3.0,
)  # fmt: skip
LIMIT = Limit(limit="bfloat16", operations=1e15, bandwidth=2e12, device="1 x chip")


QUICK = ("mini-16",)
NOT_HERE = {"attention-cudnn": "RuntimeError: cuDNN is not detected."}


def test_every_row_has_a_function_and_a_place_in_the_documentation() -> None:
    assert {row.measure for row in ROWS.values()} == set(MEASURES)
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert [name for name in ROWS if f"`{name}`" not in page] == []


def test_missing_rows_begin_with_the_limits_and_leave_out_what_was_measured() -> None:
    assert MISSING[0] == "limits"
    assert "mega-16" in MISSING
    assert "mini-16" not in MISSING
    kept = {"golden": {"results": [], "error": ""}, "mega-16": {"results": [], "error": "out of memory"}}
    names = ["limits", "golden", "mini-16", "torch-mega-16", "mega-16"]
    assert choose(names, kept, missing=True, torch=False) == ["limits", "mega-16"]
    assert choose(names, kept, missing=False, torch=True) == names


@pytest.mark.process
def test_refused_flag_is_told_in_one_line() -> None:
    err = "E1 f.cc:1] Illegal value for --xla_a 'B'\nF1 f.cc:2] Check failed\nusage: --xla_a=B\nFlags:\n\t--xla_c"
    assert explain(-6, err) == "Illegal value for --xla_a 'B'"
    found, error = measure_apart("limits", small=True, seconds=500, flags="--xla_none=1")
    assert (found, error) == ([], "Unknown flag in XLA_FLAGS: --xla_none=1")


def test_error_is_told_without_the_lines_that_jax_adds() -> None:
    err = "Traceback:\nRuntimeError: no cuDNN\n-----\nFor simplicity, JAX has removed its internal frames.\n"
    assert explain(1, err) == "RuntimeError: no cuDNN"
    assert explain(-9, "") == "ended with -9"


@pytest.mark.process
def test_packages_that_are_needed_are_listed() -> None:
    # A Python without site-packages has none of them.
    command = [sys.executable, "-S", "-m", "benchmarks.accelerator", "--small"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    names = " ".join(NEEDED.values())
    assert (
        done.stderr
        == f"missing packages: {names}; install them with {sys.executable} -m pip install {names}\n"
    )
    assert missing_packages() == []


@pytest.mark.process
@pytest.mark.parametrize(
    "name", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in ROWS]
)
def test_row_succeeds(name: str) -> None:
    # In a process of its own also because a program that is lowered ahead of time has trees without arrays, which the
    # checks of shapes in tests refuse.
    found, error = measure_apart(name, small=True, seconds=500)
    assert error == NOT_HERE.get(name, "")
    results = [parse(each) for each in found]
    checks = [each for each in results if isinstance(each, Check)]
    assert all(each.passed is not False for each in checks), checks
    timings = [each for each in results if isinstance(each, Timing)]
    assert all(0 < each.lowest <= each.milliseconds <= each.highest for each in timings)
    counts = {
        "attention": (1, 1), "decode": (3, 2), "golden": (0, 11), "limits": (0, 0), "tokens": (1, int("-16" in name)),
        "torch_tokens": (1, 0),
    }  # fmt: skip
    expected = (0, 0) if name in NOT_HERE else counts[ROWS[name].measure]
    assert (len(timings), len(checks)) == expected


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
    assert list(kept["rows"]) == ["limits"]
    assert [each["limit"] for each in kept["rows"]["limits"]["results"]] == ["bfloat16", "float32"]
    assert kept["rows"]["limits"]["error"] == ""


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
