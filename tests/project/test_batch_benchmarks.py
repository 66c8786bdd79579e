"""The benchmark of planning and finishing runs, and measures every format."""

import json
import subprocess
import sys

import pytest

from benchmarks.batches.planning import FINISH, WRITERS
from harness.paths import ROOT

ROWS = [1000, 3000]


@pytest.mark.slow
@pytest.mark.process
def test_planning_and_finishing_are_measured() -> None:
    command = [sys.executable, "-m", "benchmarks.batches.planning", "--json", "--rows", *map(str, ROWS)]
    finished = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    found = [json.loads(line) for line in finished.stdout.splitlines()]
    assert [(each["what"], each["rows"]) for each in found] == [
        (what, rows) for what in (*WRITERS, FINISH) for rows in ROWS
    ]
    assert all(each["cut"] > 0 and each["memory"] > 0 for each in found)
    assert all(each["check"] > 0 for each in found if each["what"] != FINISH)
