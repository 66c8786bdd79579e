"""`smalti batch run` in this process: the files, and what is refused."""

import csv
import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from pyarrow import parquet

from smalti.outputs import open_folder
from smalti.pictures import load_drawing
from tests.cli.batches.conftest import PROMPTS, Batch, files_of

FILES = {
    "00000.tar", "00001.tar", "00002.tar", "_SUCCESS", "manifest/00000.parquet", "summary.json",
}  # fmt: skip


def test_run_writes_the_files_and_says_so_when_they_are_there(
    batch: Batch, prompts: Path, drawn: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    # Without the name of a command, as with it.
    status, output, error = batch(prompts, "--out", out, *drawn)
    assert (status, error) == (0, "")
    assert output.startswith("5 of 5 prompts drawn, 10 pictures, ")
    assert set(files_of(out)) == FILES
    rows = parquet.read_table(out / "manifest").to_pylist()
    assert [row["prompt"] for row in rows] == PROMPTS
    assert [row["tar"] for row in rows] == ["00000.tar", "00000.tar", "00001.tar", "00001.tar", "00002.tar"]
    # Equal prompts have seeds of their own.
    assert len({row["seed"] for row in rows}) == 5
    with tarfile.open(out / "00001.tar") as tar:
        assert tar.getnames()[:2] == ["000000002-0.png", "000000002-0.json"]
        description = json.load(tar.extractfile("000000002-0.json"))  # type: ignore[arg-type]
        content = tar.extractfile("000000002-0.png").read()  # type: ignore[union-attr]
    assert (description["prompt"], description["n"], description["candidates"]) == ("a fox", 2, 3)
    assert Image.open(io.BytesIO(content)).size == (32, 32)
    (tmp_path / "picture.png").write_bytes(content)
    assert load_drawing(tmp_path / "picture.png").seed == rows[2]["seed"]

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    status, output, _ = batch("run", prompts, "--out", out, *drawn)
    assert status == 0
    assert output.startswith(f"{out} is complete already: 5 of 5 prompts drawn")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_run_that_failed_goes_on_and_ends_with_the_same_files(
    batch: Batch, prompts: Path, drawn: tuple[str, ...], tmp_path: Path
) -> None:
    assert batch(prompts, "--out", tmp_path / "whole", *drawn)[0] == 0
    out = tmp_path / "out"
    # The picture file of the third shard, which begins when one of the first two is generated, cannot be written.
    (out / "00002.tar").mkdir(parents=True)
    status, _, error = batch(prompts, "--out", out, *drawn)
    assert status == 2
    assert error == f"smalti: {out} cannot be written: Is a directory\n"
    there = {path: path.stat().st_mtime_ns for path in out.glob("*.tar") if path.is_file()}
    assert there
    assert not (out / "summary.json").exists()
    assert not list(out.glob("_work/begun/*"))
    (out / "00002.tar").rmdir()
    status, _, error = batch(prompts, "--out", out, *drawn)
    assert (status, error) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in there} == there
    assert files_of(out) == files_of(tmp_path / "whole")


def test_shard_that_was_lost_is_drawn_prompt_by_prompt(
    batch: Batch, prompts: Path, drawn: tuple[str, ...], tmp_path: Path
) -> None:
    """As after a crash: a note says that the shard was being drawn."""
    assert batch(prompts, "--out", tmp_path / "whole", *drawn)[0] == 0
    noted = (
        ('{"row": 3, "times": 1}', ["drawn"] * 5),
        ('{"row": 3, "times": 2}', ["drawn", "drawn", "drawn", "failed", "drawn"]),
    )
    for number, (note, states) in enumerate(noted):
        out = tmp_path / f"out-{number}"
        (out / "00000.tar").mkdir(parents=True)
        assert batch(prompts, "--out", out, *drawn)[0] == 2
        (out / "00000.tar").rmdir()
        (out / "_work/begun").mkdir()
        (out / "_work/begun/00001.json").write_text(note)
        (out / "_work/parts/00001.jsonl").unlink(missing_ok=True)
        assert batch(prompts, "--out", out, *drawn)[0] == 0
        assert [row["state"] for row in parquet.read_table(out / "manifest").to_pylist()] == states
        if "failed" not in states:
            assert files_of(out) == files_of(tmp_path / "whole")


def test_another_run_is_refused_with_what_differs(
    batch: Batch, prompts: Path, drawn: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "00000.tar").mkdir(parents=True)
    assert batch(prompts, "--out", out, *drawn)[0] == 2
    (out / "00000.tar").rmdir()
    for more, difference in (
        (("--seed", "1"), "its seed is 0, not 1"),
        (("--top-k", "9"), "its top_k is 50, not 9"),
        (("--format", "webp"), "its picture format is png, not webp"),
        (("--skip-invalid",), "its skip_invalid is false, not true"),
    ):
        status, _, error = batch(prompts, "--out", out, *drawn, *more)
        assert status == 2
        assert error.startswith(f"smalti: out: {out} has another run: {difference}; give another place")
    prompts.write_text("another prompt\n")
    assert "its input is " in batch(prompts, "--out", out, *drawn)[2]


def test_complete_output_of_another_run_is_refused(
    batch: Batch, prompts: Path, drawn: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert batch(prompts, "--out", out, *drawn)[0] == 0
    status, _, error = batch(prompts, "--out", out, *drawn, "--seed", "1")
    assert status == 2
    assert "has another run: its seed is 0, not 1" in error
    (out / "00001.tar").unlink()
    assert f"{out} has _SUCCESS, but lacks 00001.tar" in batch(prompts, "--out", out, *drawn)[2]


def test_folder_with_other_files_or_another_writer_is_refused(
    batch: Batch, prompts: Path, drawn: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    status, _, error = batch(prompts, "--out", out, *drawn)
    assert (status, error) == (
        2, f"smalti: out: {out} is not empty (it has notes.txt); give another place, or empty it\n",
    )  # fmt: skip
    assert set(files_of(out)) == {"notes.txt"}
    with open_folder(tmp_path / "busy"):
        assert "is being written by process" in batch(prompts, "--out", tmp_path / "busy", *drawn)[2]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("bad.jsonl", b'{"prompt": "a fox"}\n{"seed": 1}\n', "input: line 2, column 'prompt': is missing"),
        ("bad.csv", b"caption\na fox\n", "input: there is no column 'prompt'; the input has 'caption'"),
        ("bad.txt", b"a fox\n\xff\n", "input: line 2: "),
        ("bad.parquet", b"PAR1", "input: "),
        ("bad.txt", b"\n\n", "input: has no prompts"),
        ("bad.doc", b"a fox\n", "'bad.doc' must end in .txt, .jsonl, .csv, .parquet"),
    ],
)
def test_input_that_cannot_be_used_is_told_in_one_line_and_nothing_is_written(
    batch: Batch, drawn: tuple[str, ...], tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    (tmp_path / name).write_bytes(content)
    status, _, error = batch(tmp_path / name, "--out", tmp_path / "out", *drawn)
    assert status == 2
    assert error.count("\n") == 1
    assert problem in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nowhere.txt", "--out", "out"], "nowhere.txt: cannot be read"),
        (["prompts.txt"], "out: is missing"),
        (["prompts.txt", "--out", "out", "--column", "caption"], "column: must have the form NAME=COLUMN"),
        (["prompts.txt", "--out", "out", "--n", "4"], "n: 4 pictures cannot be chosen from 3 candidates"),
        (["prompts.txt", "--out", "out", "--seed", "-1"], "seed: must be from 0"),
        (["prompts.txt", "--out", "out", "--refine"], "the model has no refiner"),
        (["prompts.txt", "--out", "s3://UPPER/run"], "must have the form s3://BUCKET/PREFIX"),
    ],
)
def test_option_that_cannot_be_used_is_told_in_one_line(
    batch: Batch,
    prompts: Path,
    drawn: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    problem: str,
) -> None:
    monkeypatch.chdir(prompts.parent)
    status, _, error = batch(*drawn, *arguments)
    assert status == 2
    assert problem in error
    assert error.count("\n") == 1
    assert not Path("out").exists()


def test_rows_say_otherwise_and_invalid_ones_are_left_out(
    batch: Batch, drawn: tuple[str, ...], tmp_path: Path
) -> None:
    rows = [
        {"caption": "a fox", "name": "first", "seed": "7", "n": "1", "source": "x"},
        {"caption": "", "name": "second", "seed": "", "n": "", "source": ""},
        {"caption": "a cat", "name": "third", "seed": "8", "n": "", "source": ""},
    ]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    options = ("--column", "prompt=caption", "--column", "id=name", "--ignore-columns", "--format", "webp")
    out = tmp_path / "out"
    given = (tmp_path / "rows.csv", "--out", out, *drawn, *options)
    assert "line 3, column 'caption'" in batch(*given)[2]
    status, output, error = batch(*given, "--skip-invalid", "--json")
    assert status == 0
    assert error.startswith("smalti: left out: line 3: ")
    assert json.loads(output) | {"drawn": 2, "invalid": 1, "pictures": 3} == json.loads(output)
    found = parquet.read_table(out / "manifest").to_pylist()
    assert [(row["id"], row["state"], len(row["pictures"])) for row in found] == [
        ("first", "drawn", 1), ("second", "invalid", 0), ("third", "drawn", 2),
    ]  # fmt: skip
    assert [row["seed"] for row in found][::2] == [7, 8]
    with tarfile.open(out / "00000.tar") as tar:
        assert tar.getnames() == ["000000000-0.webp", "000000000-0.json"]


def test_standard_input_is_an_input(
    batch: Batch, prompts: Path, drawn: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with prompts.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert batch("-", "--out", tmp_path / "out", *drawn)[0] == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["input"]["name"], summary["input"]["format"]) == ("-", "text")
    assert summary["counts"]["drawn"] == 5


def test_dry_run_estimates_and_writes_nothing(
    batch: Batch, prompts: Path, drawn: tuple[str, ...], tmp_path: Path
) -> None:
    status, output, _ = batch(prompts, "--dry-run", "--out", tmp_path / "out", *drawn, "--json")
    assert status == 0
    found = json.loads(output)
    assert (found["prompts"], found["candidates"], found["pictures"]) == (5, 15, 10)
    assert found["seconds"] >= 0
    assert 10 * 1000 < found["bytes"] < 10 * 10_000
    assert not (tmp_path / "out").exists()
