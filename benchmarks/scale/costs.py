"""What was measured of jobs: counts for each job, of several runs; kept as JSON beside this file."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

COSTS: Final = Path(__file__).with_name("costs.json")
"""The costs that the page and the simulation use."""
Counts = Mapping[str, float]
"""Counts by name; the part before the colon is the place."""

CANDIDATES_IN_CHUNK: Final = 4
JOB_SIZES: Final = (4, 16)
"""Candidates of the jobs that are measured: one chunk, and four."""
SQLITE, POSTGRES = "SQLite", "PostgreSQL"
ALONE, TOGETHER, DELETED = "one at a time", "32 at a time", "deleted"
"""How jobs run: each waits for the one before, or 32 at the same time; or what their deletion costs afterwards."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The counts of jobs of one kind."""

    database: str
    """SQLITE or POSTGRES."""
    way: str
    """ALONE, TOGETHER or DELETED."""
    candidates: int
    """Candidates of each job."""
    jobs: int
    """Jobs in each repetition."""
    counts: Mapping[str, Sequence[float]]
    """Counts for one job by name, one for each repetition, without those of an idle system in the same time."""

    def median(self, name: str) -> float:
        """Returns the median of a count; 0 if there is none of the name."""
        return statistics.median(self.counts[name]) if name in self.counts else 0.0


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Everything that `python -m benchmarks.cost` measures."""

    facts: Mapping[str, str]
    """The facts on which the results depend."""
    runs: Sequence[Run]
    idle: Mapping[str, Mapping[str, float]]
    """Counts of an idle system in a second, by database."""
    model: Mapping[str, float]
    """Counts for a job of 16 candidates of the shipped model, whose objects and messages have their real sizes."""
    stream: Mapping[str, float]
    """What a client that watches a waiting job costs the gateway."""

    @classmethod
    def load(cls, path: Path = COSTS) -> Self:
        """Reads a file that `save` wrote."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**fields, "runs": [Run(**run) for run in fields["runs"]]})

    def save(self, path: Path) -> None:
        """Writes a file."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def run(self, database: str, way: str, candidates: int) -> Run:
        """Returns the run of a kind."""
        return next(
            run for run in self.runs if (run.database, run.way, run.candidates) == (database, way, candidates)
        )

    def split(self, name: str, *, database: str = POSTGRES, way: str = TOGETHER) -> tuple[float, float]:
        """Returns a count of a job without its chunks, and that of each chunk.

        They follow from jobs of one and of four chunks. The first is at least 0, since the difference has an error.
        """
        few, many = (self.run(database, way, candidates).median(name) for candidates in JOB_SIZES)
        chunk = max(0.0, (many - few) / 3)
        return max(0.0, few - chunk), chunk
