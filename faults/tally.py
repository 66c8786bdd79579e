"""The numbers of a row of the fault matrix."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """The numbers of a row."""

    states: Counter[str] = field(default_factory=Counter)
    twice: int = 0
    """Work that was done again; harmless, since it writes the same bytes."""
    unexpected: list[str] = field(default_factory=list)
    """Objects, jobs and batches without explanation."""
    wrong: list[str] = field(default_factory=list)
    """Pictures that differ from those of a run without faults, jobs that changed after their end, wrong manifests."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Reasons of failed jobs and batches."""

    notes: list[str] = field(default_factory=list)
    """Observations for the report."""

    @property
    def accepted(self) -> int:
        """The number of accepted jobs and batches."""
        return self.states.total() - self.states["refused"]

    def add(self, other: "Tally") -> None:
        """Adds the numbers of another account of the same row."""
        self.states += other.states
        self.twice += other.twice
        self.unexpected += other.unexpected
        self.wrong += other.wrong
        self.reasons += other.reasons
        self.notes += other.notes
