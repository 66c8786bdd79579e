"""What a simulated fleet consists of, and what it takes."""

from collections.abc import Generator, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import simpy

from benchmarks.scale.costs import CANDIDATES_IN_CHUNK

Happening = Generator[simpy.Event, Any, None]
"""A process of the simulation."""
STATIONS: Final = ("gateway", "database", "broker", "store")
Shares = Mapping[str, float]
ACCEPTING: Final[Shares] = {"gateway": 0.5, "database": 0.5}
"""Share of a job's own costs that arise when it is accepted, by station, in the order of the visits."""
SENDING: Final[Shares] = {"gateway": 0.5, "database": 0.5, "broker": 0.5}
"""Share of a chunk's costs until it is in a queue."""
RETURNING: Final[Shares] = {"store": 1.0, "broker": 0.5, "gateway": 0.5, "database": 0.5}
"""Share of a chunk's costs after its tokens are generated."""
ENDING: Final[Shares] = {"store": 1.0, "broker": 1.0, "gateway": 0.5, "database": 0.5}
"""Share of a job's own costs that arise at its end."""


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A generator's accelerator."""

    slots: int
    """Candidates at a time."""
    seconds: float
    """Time for the tokens of a candidate; candidates in other slots do not slow it down."""
    start: float
    """Seconds until a new process is ready."""

    @property
    def places(self) -> int:
        """Chunks at a time."""
        return self.slots // CANDIDATES_IN_CHUNK

    @property
    def candidates(self) -> float:
        """Candidates in a second."""
        return self.slots / self.seconds


@dataclass(frozen=True, kw_only=True)
class Demand:
    """Processor seconds that jobs take at the stations, by the name of the station."""

    job: Mapping[str, float]
    """For each job, beside its chunks."""
    chunk: Mapping[str, float]

    def of(self, station: str, chunks: int) -> float:
        """Returns the seconds that a job takes at a station."""
        return self.job[station] + chunks * self.chunk[station]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How many there are of everything."""

    cells: int
    generators: int
    """Generators of each cell."""
    servers: Mapping[str, int]
    """Cores of each cell by station: of a gateway, which is a Python process, and of a broker, each process has one."""
    window: int
    """Candidates of a revision in a cell's queues at a time; the rest waits in the database."""
    open_jobs: int = 10_000
    """Open jobs of a cell; more are refused (`SMALTI_GATEWAY_OPEN_JOBS`)."""
    zones: int = 3
    binds_to_newest: bool = True
    """Whether new jobs get the newest revision with a ready generator; else one with a chance as its generators."""


@dataclass(eq=False, slots=True)
class Worker:
    """A generator."""

    zone: int
    revision: int = 0
    free: int = 0
    """Places without a chunk."""
    stopping: bool = False
    running: dict[simpy.Process, None] = field(default_factory=dict)
    """Its chunks, in the order in which it began them; a set would not keep it."""
    empty: simpy.Event | None = None
    """Triggered when the last chunk is done; set by who waits for it."""


@dataclass(eq=False, slots=True)
class Job:
    """A job; times are those of the simulation."""

    tenant: Hashable
    chunks: int
    arrived: float
    revision: int = 0
    accepted: float | None = None
    """When its transaction was committed."""
    sent: float | None = None
    """When its first chunk was its tenant's turn."""
    began: float | None = None
    """When a generator began its first chunk."""
    ended: float | None = None
    done: int = 0
