"""Streams that are closed or full, or cannot show every character."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

BEGIN = "from smalti.entrance import begin; begin('smalti test')\n"


def shell(redirections: str, program: str, **variables: str) -> "subprocess.CompletedProcess[bytes]":
    command = ["sh", "-c", f'exec "$0" -c "$1" {redirections}', sys.executable, program]
    return subprocess.run(
        command, capture_output=True, check=False, timeout=120, env={**os.environ, **variables}
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_is_opened_never_becomes_a_closed_stream(closed: str, tmp_path: Path) -> None:
    file = tmp_path / "data"
    program = f"""{BEGIN}
import os, sys
opened = os.open({str(file)!r}, os.O_WRONLY | os.O_CREAT)
print("to standard output", flush=True)
sys.stderr.write("to standard error\\n")
sys.stdin.read(0)
assert opened > 2
"""
    assert shell(closed, program).returncode == 0
    assert file.read_bytes() == b""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_character_ends_a_program(encoding: str) -> None:
    program = f"{BEGIN}print('a \\u2580 b\\udcff', flush=True)"
    done = shell("", program, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    block = "\u2580".encode() if encoding == "utf-8" else b"?"
    assert done.stdout == b"a " + block + b" b\xff\n"  # The byte of a file name is shown as it is.


@pytest.mark.parametrize(
    "arguments", [["models"], ["models", "--words", "--json"], ["--version"], ["--help"]]
)
def test_full_output_ends_in_one_line_and_a_code(arguments: Sequence[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "smalti", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 2
    assert done.stderr == "smalti: the output cannot be written (No space left on device)\n"


def test_reader_that_has_gone_is_not_told() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "smalti", "models", "--words"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=120)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_errors_need_no_standard_error() -> None:
    assert (
        shell(
            "2>/dev/full", "import sys; sys.argv[1:] = ['models', 'x']; from smalti.cli import main; main()"
        ).returncode
        == 2
    )
