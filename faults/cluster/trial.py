"""A phase of the proof, and what it works with."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from faults.accounting import Account
from faults.cluster.kubernetes import Namespace
from faults.cluster.release import Release
from faults.cluster.system import ClusterSystem
from faults.tally import Tally

READY_SECONDS: Final = 900.0
"""Time in which everything must be ready again, on a busy machine."""
FIRST, NEXT = "first", "next"
CLAIM: Final = "smalti-next"
"""The claim with the next revision of the model."""


@dataclass
class Trial:
    """The run of a phase."""

    namespace: Namespace
    release: Release
    system: ClusterSystem
    account: Account
    folder: Path
    next_tag: str
    """Tag of the images of the next version of the code; empty for the same."""
    problems: list[str] = field(default_factory=list)
    """Expectations that were not met."""
    notes: list[str] = field(default_factory=list)
    """Observations for the report."""

    def expect(self, condition: bool, problem: str) -> None:
        """Records a problem unless the condition holds."""
        if not condition:
            self.problems.append(problem)

    def code(self) -> list[str]:
        """Returns the settings of the chart for the next version of the code."""
        return [f"image.tag={self.next_tag}"] * bool(self.next_tag)

    def next_model(self) -> list[str]:
        """Returns the settings of the chart for the next revision of the model."""
        return [f"models[0].name={self.system.model.name}", f"models[0].source.claim.name={CLAIM}"]


@dataclass(frozen=True)
class Phase:
    """Something that happens to the system while it draws."""

    name: str
    what: str
    guarantee: str
    run: Callable[[Trial], None]


@dataclass(frozen=True)
class PhaseResult:
    """The result of a phase."""

    phase: Phase
    tally: Tally
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether all expectations were met, and no job was lost, wrong, unexplained, refused or failed."""
        tally = self.tally
        bad = sum(tally.states[name] for name in ("lost", "failed", "refused", "expired", "cancelled"))
        return not (self.problems or bad or tally.unexpected or tally.wrong)


def phase(name: str, what: str, guarantee: str) -> Callable[[Callable[[Trial], None]], Phase]:
    """Turns a function into a phase."""
    return lambda run: Phase(name, what, guarantee, run)
