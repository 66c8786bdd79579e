"""The benchmark runs with tiny shapes and writes its table into a page."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import PARTS
from benchmarks.generating import step_work
from benchmarks.measuring import Limits, Times
from benchmarks.report import BEGIN, END, Row, compared, write
from harness.paths import ROOT
from harness.servers import PostgresServer
from smalti.errors import InvalidInputError
from smalti.models.bart import DalleBartConfig
from smalti.registry.published import MEGA


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """Runs the benchmark with tiny shapes."""
    command = [sys.executable, "-m", "benchmarks", "--quick", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_every_part_is_measured_and_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n", encoding="utf-8")
    done = run(
        *("--write", str(page), "--parts"),
        *(part for part in PARTS if part not in ("start", "system", "web", "accept")),
    )
    assert done.returncode == 0, done.stderr
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n\n{BEGIN}\n")
    assert text.endswith(f"{END}\n\nafter\n")
    assert "old" not in text
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"
    ]
    assert cells[0] == ["work", "Smalti", "min-dalle", "result", "goal"]
    begins = [
        "tokens of 9 candidates", "tokens of 4 candidates, share", "requests that arrive", "tokens of 1 candidate, 4",
        "tokens of 1 candidate, 1", "VQGAN decode of 9", "tokens of 16 candidates with guidance, mega",
    ]  # fmt: skip
    assert [row[0].startswith(begin) for begin, row in zip(begins, cells[2:], strict=True)] == [True] * 7
    assert all(row[1] for row in cells[2:])
    for fact in ("* date: 20", "* processor: ", "* versions: Python 3", "* other processes: used "):
        assert f"\n{fact}" in text


@pytest.mark.slow
@pytest.mark.process
def test_decoding_is_measured() -> None:
    done = run("--parts", "decode")
    assert done.returncode == 0, done.stderr
    assert "VQGAN decode of 9" in done.stdout


@pytest.mark.server
@pytest.mark.slow
def test_starts_are_measured() -> None:
    done = run("--parts", "start", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    for work in (
        "imports jax and torch",
        "`smalti generate`",
        "the first time",
        "`Pipeline.load()`",
        "`smalti up`",
    ):
        assert work in done.stdout


@pytest.mark.server
@pytest.mark.slow
def test_jobs_through_the_whole_system_are_measured() -> None:
    done = run("--parts", "system")
    assert done.returncode == 0, done.stderr
    for work in ("one job of 4", "one job of 16", "8 jobs of 16", "acknowledgement", "50 waiting jobs"):
        assert work in done.stdout


def test_page_without_markers_is_not_changed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n", encoding="utf-8")
    with pytest.raises(InvalidInputError, match=r"^--write: .*page\.md must have the lines"):
        write(page, [Row("work", "1 s")], {})
    assert page.read_text(encoding="utf-8") == "nothing\n"


def test_page_of_the_documentation_has_the_markers() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert page.index(BEGIN) < page.index(END)


def test_floor_is_the_slower_of_computing_and_reading() -> None:
    limits = Limits(operations=10.0, bandwidth=4.0)
    assert limits.floor(50, 8) == 5
    assert limits.floor(5, 8) == 2


def test_work_of_a_step_follows_from_the_published_weights() -> None:
    # A step reads the 2.95 GB of decoder weights in bfloat16, without the embeddings and the projections that a prompt
    # needs only once, and the keys and values of 16 slots: 24 layers, 2048 wide, 128.5 positions of 32 rows and 64
    # of 16.
    _, size = step_work(DalleBartConfig.from_fields(MEGA), 16, "bfloat16")
    kept = 2 * 24 * 2 * 2048 * (32 * 128.5 + 16 * 64)
    assert size - kept == pytest.approx(2.48e9, rel=0.01)
    _, shortened = step_work(
        DalleBartConfig.from_fields(MEGA), 16, "bfloat16", int8_weights=True, int8_cache=True
    )
    # Half of it, and a scale of four bytes for each head's vector of 64.
    assert shortened == pytest.approx(size / 2 + kept / 2 * 4 / 64)


def test_times_are_printed_with_their_spread() -> None:
    times = Times((0.25, 0.125, 1.5))
    assert str(times) == "250 ms (125 ms to 1.5 s)"
    assert str(times.scaled(256)) == "64 s (32 s to 384 s)"
    assert compared(4.9, 5, "x") == ("4.90x", "at least 5x: missed")


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.skipif(PostgresServer.programs() is None, reason="PostgreSQL is not installed")
def test_acceptance_by_several_gateways_is_measured() -> None:
    done = run("--parts", "accept")
    assert done.returncode == 0, done.stderr
    for gateways in ("1 gateway", "2 gateways"):
        for where in ("beside its database", "4 ms away"):
            assert f"jobs accepted by {gateways} {where}" in done.stdout
