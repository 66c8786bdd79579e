"""The log of a run: each record is a line of JSON, and a line that a crash cut off costs only itself."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smalti.files import write_atomically

METRICS_FILE = "metrics.jsonl"


def append_record(log: Path, record: Mapping[str, float]) -> None:
    """Appends a record; numbers that are not finite, which JSON does not have, become null."""
    finite = {name: value if math.isfinite(value) else None for name, value in record.items()}
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(finite, allow_nan=False) + "\n")


def load_records(log: Path) -> tuple[list[dict[str, Any]], int]:
    """Loads a log, which may be missing.

    Returns:
        its records, and the number of lines that are damaged and therefore left out.

    Raises:
        OSError: the log cannot be read.
    """
    if not log.exists():
        return [], 0
    records, damaged = [], 0
    for line in log.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            damaged += 1
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
        else:
            damaged += 1
    return records, damaged


def cut_log(log: Path, step: int) -> int:
    """Removes later steps from a log, and lines that are damaged; returns how many of these there were."""
    records, damaged = load_records(log)
    if log.exists():
        kept = [record for record in records if record["step"] <= step]
        write_atomically(log, "".join(json.dumps(record) + "\n" for record in kept))
    return damaged
