"""The rows of the matrix: what each does, and what it may expect."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.accounting import Account, Submission, Tally
from faults.system import STAGES, System


@dataclass
class Trial:
    """A row that runs."""

    system: System
    account: Account
    jobs: int = 24
    """How many jobs make a load."""
    long: bool = True
    """Whether there is time for what takes long."""
    burst: int = 10_000
    """How many jobs are asked for at once."""
    problems: list[str] = field(default_factory=list)
    """What was expected, and did not happen."""
    notes: list[str] = field(default_factory=list)
    """What is worth knowing."""

    def expect(self, condition: bool, problem: str) -> None:
        """Notes a problem where the condition does not hold."""
        if not condition:
            self.problems.append(problem)

    def expect_states(self, state: str, *submissions: Submission) -> None:
        """Waits for jobs, all by default, and notes those that have another end."""
        self.account.settle(*submissions)
        for each in submissions or self.account.submissions:
            if each.state != state:
                why = each.refused or (each.end.error.message if each.end else "")
                self.problems.append(f"{each.prompt!r} is {each.state}, not {state}: {why}")


@dataclass(frozen=True)
class Row:
    """A row of the matrix."""

    name: str
    fault: str
    promise: str
    run: Callable[[Trial], None]
    failpoints: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Path], Mapping[str, str]] | None = None
    """Writes what it needs into a folder, and returns further settings."""
    services: tuple[str, ...] = STAGES
    held: tuple[str, ...] = ()
    """Of them those that are not started with the rest."""

    @property
    def alone(self) -> bool:
        """Whether it has a system of its own, which is other than that of most."""
        return bool(self.settings or self.prepare or self.held) or self.services != STAGES


@dataclass(frozen=True)
class Result:
    """What became of a row."""

    row: Row
    tally: Tally
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, wrong or unexpected, and what is promised was seen."""
        tally = self.tally
        return not (self.problems or tally.states["lost"] or tally.unexpected or tally.wrong)


def row(name: str, fault: str, promise: str, **options: Any) -> Callable[[Callable[[Trial], None]], Row]:
    """Makes a row of a function that does the harm and says what it expects; `options` are further fields of `Row`."""
    return lambda run: Row(name, fault, promise, run, **options)


def killing(row_name: str, point: str) -> tuple[str, str]:
    """Returns a failpoint that kills its process once, for one prompt alone, and that prompt."""
    prompt = f"{row_name} {point} is killed"
    return f"{point}=kill@1?prompt={prompt}", prompt


def sleeping(row_name: str, point: str, seconds: float, about: str = "") -> tuple[str, str]:
    """Returns a failpoint that sleeps once, for one prompt alone, and that prompt."""
    prompt = f"{row_name} {point} sleeps {about}".strip()
    return f"{point}=sleep:{seconds:g}@1?prompt={prompt}", prompt
