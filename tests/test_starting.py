"""A quick start and end of a process: what the garbage collector does, and what it leaves."""

import subprocess
import sys

import pytest

from harness.paths import ROOT

CYCLE = """
import gc
from contextlib import nullcontext
from smalti.starting import exit_without_collection, without_collection

class Cycle:
    def __init__(self, name):
        self.name, self.itself = name, self

    def __del__(self):
        print(self.name)
"""


def output(program: str) -> list[str]:
    command = [sys.executable, "-c", CYCLE + program]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=300, cwd=ROOT
    ).stdout.split()


@pytest.mark.process
def test_exit_collects_nothing_but_what_comes_before_does() -> None:
    program = "Cycle('before'); gc.collect(); kept = Cycle('kept')"
    assert output(program) == ["before", "kept"]
    assert output(f"exit_without_collection(); {program}") == ["before"]


@pytest.mark.process
def test_collection_goes_on_after_the_start() -> None:
    program = "Cycle('start'); enabled = gc.isenabled()\nCycle('later'); gc.collect(); print(enabled)"
    assert output(f"with nullcontext(): {program}") == ["start", "later", "True"]
    assert output(f"with without_collection(): {program}") == ["later", "False"]
