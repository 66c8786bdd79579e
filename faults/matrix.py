"""The rows of the fault matrix: how they are declared, run and judged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.accounting import Account, Submission
from faults.batches import BatchAccount, BatchSubmission
from faults.layout import STAGES
from faults.system import System
from faults.tally import Tally


@dataclass
class Trial:
    """The run of a row."""

    system: System
    account: Account
    batches: BatchAccount
    jobs: int = 24
    """The number of jobs of a load."""
    long: bool = True
    """Whether slow parts run too."""
    burst: int = 10_000
    """The number of jobs that are submitted at once."""
    problems: list[str] = field(default_factory=list)
    """Expectations that were not met."""
    notes: list[str] = field(default_factory=list)
    """Observations for the report."""

    def expect(self, condition: bool, problem: str) -> None:
        """Records a problem unless the condition holds."""
        if not condition:
            self.problems.append(problem)

    def expect_states(self, state: str, *submissions: Submission) -> None:
        """Waits for jobs, by default all, and records a problem for each with another final state."""
        self.account.settle(*submissions)
        for each in submissions or self.account.submissions:
            if each.state != state:
                why = each.refused or (each.end.error.message if each.end else "")
                self.problems.append(f"{each.prompt!r} is {each.state}, not {state}: {why}")

    def expect_batches(self, state: str, *submissions: BatchSubmission) -> None:
        """Waits for batches, by default all, and records a problem for each with another final state."""
        self.batches.settle(*submissions)
        for each in submissions or self.batches.submissions:
            if each.state != state:
                why = each.refused or (each.end.error.message if each.end else "")
                self.problems.append(f"batch {each.name!r} is {each.state}, not {state}: {why}")

    def expect_same_files(self, first: BatchSubmission, *others: BatchSubmission) -> None:
        """Records a problem for each batch whose output differs from that of the first one."""
        for other in others:
            differing = self.batches.differences(first, other)
            self.expect(
                not differing, f"{', '.join(differing[:3])} of {other.name!r} and {first.name!r} differ"
            )


@dataclass(frozen=True)
class Row:
    """A row of the matrix."""

    name: str
    fault: str
    guarantee: str
    run: Callable[[Trial], None]
    failpoints: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Path], Mapping[str, str]] | None = None
    """Writes files that the row needs into a folder, and returns further settings."""
    services: tuple[str, ...] = STAGES
    held: tuple[str, ...] = ()
    """The services that are not started with the others."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Modules that are run instead of the services with these names."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Which model services load, by their names."""
    releases: Mapping[str, str] = field(default_factory=dict)
    """Released versions that run instead of the present code, by the names of services."""
    broker: str = ""
    """The only broker that the row concerns; empty for all."""
    database: str = ""
    """The only database that the row concerns; empty for all."""
    gateways: int = 1
    """The smallest number of gateways that the row needs."""

    def concerns(self, broker: str, database: str, gateways: int) -> bool:
        """Returns whether the row can be run with a broker, a database and a number of gateways."""
        return self.broker in ("", broker) and self.database in ("", database) and self.gateways <= gateways

    @property
    def alone(self) -> bool:
        """Whether the row needs its own system."""
        return bool(self.prepare or self.held or self.releases) or self.services != STAGES


@dataclass(frozen=True)
class Result:
    """The result of a row."""

    row: Row
    tally: Tally
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether all expectations were met, and nothing was lost, wrong or unexpected."""
        tally = self.tally
        return not (self.problems or tally.states["lost"] or tally.unexpected or tally.wrong)


def row(name: str, fault: str, guarantee: str, **options: Any) -> Callable[[Callable[[Trial], None]], Row]:
    """Turns a function that injects faults and states expectations into a row; `options` are fields of `Row`."""
    return lambda run: Row(name, fault, guarantee, run, **options)


def killing(row_name: str, point: str) -> tuple[str, str]:
    """Returns a failpoint that kills its process once, for one prompt, and the prompt."""
    prompt = f"{row_name} {point} is killed"
    return f"{point}=kill@1?prompt={prompt}", prompt


def sleeping(row_name: str, point: str, seconds: float, about: str = "") -> tuple[str, str]:
    """Returns a failpoint that sleeps once, for one prompt, and the prompt."""
    prompt = f"{row_name} {point} sleeps {about}".strip()
    return f"{point}=sleep:{seconds:g}@1?prompt={prompt}", prompt
