"""Memory does not grow with an input, whatever it has."""

import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from harness.paths import ROOT

MEBIBYTE = 2**20
MAX_MEMORY = 300 * MEBIBYTE

READ = """
import sys
from functools import partial
from pathlib import Path
from smalti.batches import BatchDefaults, BatchPlan, InputFormat
from smalti.parameters import SamplingParameters

plan = BatchPlan(
    open=partial(Path(sys.argv[1]).open, "rb"),
    format=InputFormat(sys.argv[2]),
    defaults=BatchDefaults(default_n=1, default_candidates=1, sampling=SamplingParameters()),
    skip_invalid=True,
)
counts = plan.check()
assert counts.invalid == 200, counts
print(Path("/proc/self/status").read_text())
"""


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("name", ["parquet", "csv", "jsonl", "text"])
def test_prompts_of_a_megabyte(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    prompts = [chr(97 + row % 26) * MEBIBYTE for row in range(100)]
    if name == "parquet":
        with parquet.ParquetWriter(path, pa.schema([("prompt", pa.string())])) as writer:
            for _ in range(2):
                writer.write_table(pa.table({"prompt": prompts}))
            writer.write_table(pa.table({"prompt": ["a fox"]}))
    else:
        before, after = {"csv": ('"', '"'), "jsonl": ('{"prompt": "', '"}'), "text": ("", "")}[name]
        with path.open("w") as file:
            file.write("prompt\n" if name == "csv" else "")
            file.writelines(f"{before}{prompt}{after}\n" for prompt in [*prompts * 2, "a fox"])
    command = [sys.executable, "-c", READ, str(path), name]
    finished = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    found = re.search(r"VmHWM:\s+(\d+) kB", finished.stdout)
    assert found is not None
    assert int(found[1]) * 1024 < MAX_MEMORY
